"""Any causal language model of transformers, its vocabulary made larger, and still a plain one."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from speechlm.nn.token_start import start_from

Rows = Literal["mean", "covariance", "copy", "keep"]


@dataclass(frozen=True)
class NewRows:
    """What the embeddings of new ids are at first, in the input and in an output head of its own alike.

    Args:
        form: "mean" is the mean of the text's embeddings plus noise, so that a new id is as likely as the average one;
            "covariance" draws from a normal distribution with their mean and covariance; "copy" takes embeddings of random text
            ids; "keep" leaves what the checkpoint has, for one that knows speech already.
        noise: of "mean", in standard deviations of the text's embeddings.
        pad_to: the number of rows becomes a multiple of it.
        seed: of the noise.
    """

    form: Rows = "mean"
    noise: float = 0.1
    pad_to: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.form not in ("mean", "covariance", "copy", "keep"):
            raise ValueError(f"new_rows.form must be 'mean', 'covariance', 'copy' or 'keep', got {self.form!r}")
        if self.noise < 0 or self.pad_to < 1:
            raise ValueError(f"new_rows need noise >= 0 and pad_to >= 1, got {self.noise} and {self.pad_to}")


def load_causal_lm(lm: str, from_scratch: bool = False, seed: int = 0) -> PreTrainedModel:
    """A model in float32, from safetensors; no code of the folder is run.

    Args:
        lm: name or folder of a checkpoint.
        from_scratch: take its configuration only, the weights are random.
        seed: of the random weights.

    Raises:
        ValueError: the model changes its logits behind the head, which the loss would have to know.
    """
    if from_scratch:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(lm), dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(lm, dtype=torch.float32, use_safetensors=True)
    _refuse_unusual_head(model, lm)
    return model


def extend_vocabulary(model: PreTrainedModel, num_text: int, size: int, rows: NewRows) -> None:
    """Make room for ids up to `size`; rows from `num_text` on are new, whatever the checkpoint had there as padding.

    Args:
        model: changed in place; a tied head stays tied.
        num_text: ids that keep their embeddings.
        size: ids of the vocabulary.
        rows: what the new ones are.

    Raises:
        ValueError: the model has fewer rows than it should keep.
    """
    have = model.get_input_embeddings().weight.shape[0]
    kept = size if rows.form == "keep" else num_text
    if have < kept:
        raise ValueError(
            f"the language model has {have} embeddings, the vocabulary {kept} ids that should keep theirs"
            + (" (new_rows.form is keep)" if rows.form == "keep" else "; its text tokenizer is not this model's")
        )
    if have < size:
        model.resize_token_embeddings(-(-size // rows.pad_to) * rows.pad_to, mean_resizing=False)
    if rows.form == "keep":
        return
    generator = torch.Generator().manual_seed(rows.seed)
    with torch.no_grad():
        for weight in _embeddings(model):
            weight[num_text:] = drawn(weight[:num_text], len(weight) - num_text, rows, generator)


@torch.no_grad()
def start_speech_rows(model: PreTrainedModel, num_text: int, speech_offset: int, vectors: Tensor) -> None:
    """Lay the embeddings of speech ids out as the tokenizer's own vectors lie, about the mean of the text's and as far from it.

    What is learnt of one code then holds for those that sound alike: hours of speech bring each of 16,384 codes a few times only.

    Args:
        model: changed in place, after `extend_vocabulary`; whole, or in shards, on all ranks together.
        num_text: ids with embeddings of text.
        speech_offset: id of code 0.
        vectors: (V, D) by code, all of them.
    """
    for weight in _embeddings(model):
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight.clone()
        text = whole[:num_text]
        rows = torch.zeros_like(whole[speech_offset : speech_offset + len(vectors)])
        start_from(rows, vectors)
        whole[speech_offset : speech_offset + len(vectors)] = text.mean(0) + text.std(0).mean() * rows
        if isinstance(weight, DTensor):
            whole = distribute_tensor(whole, weight.device_mesh, weight.placements)
        weight.copy_(whole)


def _embeddings(model: PreTrainedModel) -> list[Any]:
    """Of the input and of the output; one where the head is tied."""
    parts = model.get_input_embeddings(), model.get_output_embeddings()
    return list({id(part.weight): part.weight for part in parts}.values())


def drawn(text: Tensor, count: int, rows: NewRows, generator: torch.Generator) -> Tensor:
    """(count, D) new rows by the (T, D) rows of text."""
    if rows.form == "copy":
        return text[torch.randint(len(text), (count,), generator=generator)]
    noise = torch.randn(count, text.shape[1], generator=generator)
    mean = text.mean(0)
    if rows.form == "mean":
        return mean + rows.noise * text.std(0) * noise
    covariance = (text - mean).T @ (text - mean) / len(text)
    floor = 1e-5 * covariance.diagonal().mean()  # fewer rows than dimensions have no full covariance
    return mean + noise @ torch.linalg.cholesky(covariance + floor * torch.eye(len(covariance))).T


def blocks(model: PreTrainedModel) -> list[Any]:
    """The layers, in order."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _refuse_unusual_head(model: PreTrainedModel, lm: str) -> None:
    config = model.config
    changed = {
        "logit_scale": getattr(config, "logit_scale", None) or 1.0,
        "logits_scaling": getattr(config, "logits_scaling", None) or 1.0,
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None) or 1.0,
    }
    changed = {name: value for name, value in changed.items() if value != 1.0}
    if changed or getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise ValueError(
            f"{lm} changes its logits behind the head ({changed or 'a bias'}), which can not be trained here yet"
        )
