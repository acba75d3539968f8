"""A language model of speech as a Hugging Face folder that unmodified transformers, SGLang and vLLM load.

Everything an id means is in the folder: weights, a tokenizer that has a name for every id, a chat template, the ids that end a
generation, and `vocab.json`.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from speechlm.hub_tokenizer import load_tokenizer
from speechlm.tokens.vocab import Vocab

log = logging.getLogger(__name__)
ROLES = ("system", "user", "assistant", "observation")
#: Roles as control tokens with the content behind them, as in the prompts of ASR and TTS pairs; `names` by role comes before it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ names[message['role']] + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ names['assistant'] }}{% endif %}"
)
#: The released GLM-4-Voice model's (github.com/THUDM/GLM-4-Voice, web_demo.py).
GLM4_VOICE_CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{{ 'streaming_transcription\n' if message['role'] == 'assistant' else '\n' }}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>streaming_transcription\n' }}{% endif %}"
)


class Verified(NamedTuple):
    """What a folder gives, read by transformers alone."""

    logit_difference: float  # largest, between the folder's model and the one that was written
    positions: int  # logits of so many positions were compared


def save_hf(lm: PreTrainedModel, vocab: Vocab, text_tokenizer: str, out: str | Path, dtype: torch.dtype) -> None:
    """Write the folder, whole or not at all.

    Args:
        lm: a plain model, without adapters; it is cast to `dtype` and left so.
        vocab: of its ids.
        text_tokenizer: name or folder.
        out: must not exist, or be empty.
        dtype: of the weights.

    Raises:
        ValueError: there is something at `out`, the text tokenizer does not fit the vocabulary, or it is not read back as it was.
    """
    tokenizer = extended_tokenizer(text_tokenizer, vocab)
    with whole_folder(out) as folder:
        lm.set_attn_implementation("sdpa")
        cast_weights(lm, dtype)
        lm.generation_config = generation_config(tokenizer, vocab)
        lm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        require_same(tokenizer, folder)
        vocab.save(folder / "vocab.json")


def cast_weights(lm: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the weights and nothing else: rounded to bfloat16, the rotary frequencies would turn far positions wrongly."""
    for parameter in lm.parameters():
        parameter.data = parameter.data.to(dtype)
    lm.config.dtype = dtype


@contextmanager
def whole_folder(out: str | Path) -> Iterator[Path]:
    """A folder that takes its name when everything is in it.

    Raises:
        ValueError: there is something already.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is already there; choose another folder to write")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if out.exists():
            out.rmdir()
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def extended_tokenizer(text_tokenizer: str, vocab: Vocab) -> PreTrainedTokenizerBase:
    """The text tokenizer with a name for every other id of the vocabulary.

    Raises:
        ValueError: it has more ids than the vocabulary has for text, or a name got another id.
    """
    tokenizer = load_tokenizer(text_tokenizer)
    size = len(tokenizer)
    if size > vocab.num_text:
        raise ValueError(
            f"the text tokenizer {text_tokenizer} has {size} ids, the vocabulary {vocab.num_text} for text"
        )
    taken = set(tokenizer.get_vocab())
    names = names_of(vocab, size, taken)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    require_names(tokenizer, names, size)
    if "<|pad|>" in vocab.controls and tokenizer.pad_token is None:
        tokenizer.pad_token = "<|pad|>"
    roles = {role: control_name(vocab, f"<|{role}|>", taken) for role in ROLES}
    plain = f"{{% set names = {json.dumps(roles)} %}}" + CHAT_TEMPLATE
    tokenizer.chat_template = GLM4_VOICE_CHAT_TEMPLATE if is_glm4_voice(vocab) else plain
    return tokenizer


def names_of(vocab: Vocab, first: int, taken: set[str]) -> list[str]:
    """Names of the ids from `first` to the end of the vocabulary."""
    reserved = [f"<|reserved_{i}|>" for i in range(first, vocab.num_text)]
    controls = [control_name(vocab, name, taken) for name in vocab.controls]
    return [*reserved, *controls, *map(vocab.speech_name, range(vocab.num_speech))]


def control_name(vocab: Vocab, name: str, taken: set[str]) -> str:
    """The name of a control token in the tokenizer: another where the text tokenizer has this one for an id of its own."""
    return f"<|control_{name.strip('<|>')}|>" if name in vocab.controls and name in taken else name


def require_names(tokenizer: PreTrainedTokenizerBase, names: list[str], first: int) -> None:
    """Every name has the id it should.

    Raises:
        ValueError: one has another.
    """
    for i, (name, got) in enumerate(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True), first):
        if got != i:
            raise ValueError(f"the tokenizer gives {name} the id {got}, the vocabulary {i}; its ids are not contiguous")


def require_same(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """What is read back is what was written; a warning where `AutoTokenizer`, which others use, reads something else.

    Raises:
        ValueError: text would be encoded otherwise.
    """
    written = tokenizer.backend_tokenizer.to_str()
    if load_tokenizer(folder).backend_tokenizer.to_str() != written:
        raise ValueError(
            f"the text tokenizer {tokenizer.name_or_path} is not read back as it was written, so that text would get other ids; "
            f"save it once with transformers {transformers.__version__}, and name that folder"
        )
    if AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str() != written:
        log.warning(
            "transformers' AutoTokenizer rebuilds this model's text tokenizer by the kind of the model, and gives other ids; "
            "outside of speechlm, load it by PreTrainedTokenizerFast.from_pretrained"
        )


def is_glm4_voice(vocab: Vocab) -> bool:
    """Whether a vocabulary is that of the released GLM-4-Voice, see `glm4voice_lm`."""
    return "<|begin_of_transcription|>" in vocab.controls


def generation_config(tokenizer: PreTrainedTokenizerBase, vocab: Vocab) -> GenerationConfig:
    """A generation ends where a text does, or where the other side's turn begins."""
    user = vocab.control("<|user|>") if "<|user|>" in vocab.controls else tokenizer.get_vocab().get("<|user|>")
    ends = [i for i in (tokenizer.eos_token_id, user) if i is not None]
    return GenerationConfig(eos_token_id=ends or None, pad_token_id=tokenizer.pad_token_id)


@torch.no_grad()
def verify(out: str | Path, lm: PreTrainedModel, vocab: Vocab, positions: int = 64) -> Verified:
    """Read a folder back with transformers alone and compare it with the model that was written.

    Args:
        out: the folder.
        lm: as it was written, in the same precision.
        vocab: of both.
        positions: ids drawn at random, and the vocabulary's last ones, of which logits are compared.

    Raises:
        ValueError: the folder's vocabulary or its tokenizer's ids are not `vocab`'s.
    """
    Vocab.load(Path(out) / "vocab.json").require(vocab.hash, str(out))
    tokenizer = load_tokenizer(out)
    require_names(tokenizer, [vocab.speech_name(code) for code in range(vocab.num_speech)], vocab.speech_offset)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=lm.dtype).eval()
    ids = torch.randint(len(vocab), (1, positions), generator=torch.Generator().manual_seed(0))
    ids[0, -2:] = torch.tensor([len(vocab) - 1, vocab.speech_offset])
    difference = (theirs(ids).logits.float() - lm.eval()(ids).logits.float()).abs().max()
    return Verified(float(difference), positions)
