"""Memory and operations of a language model's training step, from its shape and its config."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from speechlm.nn.causal_lm import blocks
from speechlm.nn.lora import Lora, add_lora
from speechlm.nn.losses import PIECE, chunk_of
from speechlm.nn.packed_lm import Cost, training_cost
from speechlm.nn.recompute import Recompute, recompute
from speechlm.planning.traced import Traced, traced

FLOAT, HALF = 4, 2  # bytes
CAUSAL = "documents_traced"  # in transformers: attention that keeps what our ways keep, whatever the documents


@dataclass(frozen=True)
class LMRun:
    """What decides about a step.

    Args:
        shape: transformers' configuration.
        vocab: ids of the vocabulary, rounded up as the embedding is.
        rows: of a micro-batch on one GPU.
        row_len: ids of a row.
        mixed: bfloat16 computation.
        shards: ranks that hold the weights together; 1 is no FSDP.
        recompute: see `nn.recompute`.
        loss_chunk: see the stage.
        ema: an average of the weights is kept.
        accumulated: micro-batches of a step.
        lora: see the stage.
        fused: the optimizer makes no copies.
        predicted: share of the ids that are to be predicted.
    """

    shape: Any
    vocab: int
    rows: int
    row_len: int
    mixed: bool = True
    shards: int = 1
    recompute: Recompute = False
    loss_chunk: int | None = None
    ema: bool = False
    accumulated: int = 1
    lora: Lora | None = None
    fused: bool = True
    predicted: float = 1.0

    @property
    def positions(self) -> int:
        """Of a micro-batch."""
        return self.rows * self.row_len

    @property
    def predicting(self) -> float:
        """Positions of a micro-batch that predict something."""
        return self.positions * self.predicted

    @property
    def chunk(self) -> float:
        """Of these, those whose logits exist at a time."""
        return min(self.loss_chunk or chunk_of(self.vocab), self.predicting)


@dataclass(frozen=True)
class LMCost:
    """What `cost_of` found.

    Attributes:
        memory: bytes on a GPU at the fullest moment, by part.
        parameters: of the whole model.
        useful: operations that learn something.
        executed: what is computed over what learns, at least 1: layers and logits that are computed again.
    """

    memory: dict[str, float]
    parameters: int
    useful: Cost
    executed: float


def cost_of(run: LMRun) -> LMCost:
    """Memory and operations of a run."""
    whole = _model(run, run.shape.num_hidden_layers, "meta")
    parameters = {id(p): p for p in whole.parameters()}
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    count = sum(p.numel() for p in parameters.values())
    head_weight = whole.get_output_embeddings().weight
    head, head_learns = head_weight.numel(), head_weight.requires_grad  # LoRA may leave it as it is
    in_layers = sum(p.numel() for block in blocks(whole) for p in block.parameters())
    layer, rest, again = layers_of(run)
    states = {
        "weights": FLOAT * count / run.shards,
        "optimizer": 2 * FLOAT * trained / run.shards,
        "average": FLOAT * trained / run.shards * run.ema,
        "gathered or copied weights": _copies(run, count, in_layers, head, len(blocks(whole))),
    }
    gradients = FLOAT * trained / run.shards
    activations = layer.kept * run.shape.num_hidden_layers + rest
    work = layers_of(replace(run, recompute=False))[0].kept if run.recompute else layer.kept
    head_gradient = _head_gradient(run, head) * head_learns
    loss, useful = _loss(run, head) + head_gradient, training_cost(whole)
    full = {"activations": activations, "loss": loss} | ({"gradients": gradients} if run.accumulated > 1 else {})
    empty = {"gradients": gradients + _waiting(run) * head_gradient, "layer at work": work}
    fullest = max(full, empty, key=lambda parts: sum(parts.values()))
    products = 4 / 3 if run.chunk < run.predicting else 1.0
    done = useful.per_token * again + useful.per_target * run.predicted * products
    return LMCost({**states, **fullest}, count, useful, done / (useful.per_token + useful.per_target * run.predicted))


def layers_of(run: LMRun) -> tuple[Traced, float, float]:
    """What a layer keeps and computes; bytes that are kept once; operations done over operations needed.

    By running one and two layers of the model.
    """
    one, two = (_trace(run, layers) for layers in (1, 2))
    layer = Traced(*(b - a for a, b in zip(one, two, strict=True)))
    done = layer.flops - layer.attention_flops  # every pair of a row is counted there, whatever the documents
    if not run.recompute:
        return layer, one.kept - layer.kept, 1.0
    first, second = (_trace(replace(run, recompute=False), layers) for layers in (1, 2))
    whole = Traced(*(b - a for a, b in zip(first, second, strict=True)))
    every = run.recompute if type(run.recompute) is int else 1  # n is every n-th layer
    kept = layer.kept / every + whole.kept * (1 - 1 / every)
    more = done / (whole.flops - whole.attention_flops) - 1
    return layer._replace(kept=kept), max(0.0, one.kept - layer.kept), 1 + more / every


def _trace(run: LMRun, layers: int) -> Traced:
    """Of all layers alike, where it is every n-th that is computed again, all of them are."""
    with FakeTensorMode():
        lm = _model(run, layers, "cpu", torch.bfloat16 if run.mixed else torch.float32).train()
        lm.set_attn_implementation(CAUSAL)
        recompute(blocks(lm), run.recompute if isinstance(run.recompute, str) else bool(run.recompute))
        ids = torch.zeros(run.rows, run.row_len, dtype=torch.long)
        mask = torch.ones(run.rows, 1, run.row_len, run.row_len, dtype=torch.bool)
        places = torch.zeros_like(ids)

        def work() -> Tensor:
            out = lm.base_model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False)
            return out.last_hidden_state

        return traced(work, run.mixed)


def _causal(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """(B, heads, S, d) queries, keys, values -> (B, S, heads, d); keys and values of a group of queries are there once."""
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(CAUSAL, _causal)
AttentionMaskInterface.register(CAUSAL, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def _model(run: LMRun, layers: int, device: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    shape = copy.deepcopy(run.shape)
    shape.vocab_size, shape.num_hidden_layers = run.vocab, layers
    for name in ("layer_types",):
        if getattr(shape, name, None):
            setattr(shape, name, list(getattr(shape, name))[:layers])
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation="sdpa")
        if run.lora is not None:
            add_lora(model, blocks(model), run.lora)
    assert isinstance(model, nn.Module)
    return model


def _copies(run: LMRun, count: int, in_layers: int, head: int, layers: int) -> float:
    """Bytes of weights beside those that are kept: whole ones of two layers and of embedding and head; or all, in bfloat16."""
    size = HALF if run.mixed else FLOAT
    if run.shards > 1:
        return size * (2 * in_layers / layers + (count - in_layers))
    return HALF * (in_layers + head) if run.mixed else 0.0


def _loss(run: LMRun, head: int) -> float:
    """Bytes of head and losses in the backward pass beside the head's gradient: logits, states and two gradients of them."""
    size = HALF if run.mixed else FLOAT
    logits = size * run.chunk * run.vocab
    logits += FLOAT * PIECE["cuda"] if run.mixed else 0  # those of a piece in float32
    return logits + 3 * size * run.predicting * head / run.vocab


def _waiting(run: LMRun) -> int:
    """Gradients of the size of the head's that are there at the end of the backward pass beside those that are kept.

    The head's waits for that of the embedding, with which it is summed if they are one; both wait to be spread over ranks.
    """
    return 2 if run.shards > 1 else run.shape.tie_word_embeddings + (run.accumulated > 1)


def _head_gradient(run: LMRun, head: int) -> float:
    """Bytes of it; FSDP2's head is in bfloat16."""
    return (HALF if run.mixed and run.shards > 1 else FLOAT) * head
