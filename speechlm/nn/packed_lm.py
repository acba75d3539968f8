"""A causal language model over packed rows: losses of the positions that are to be predicted, and nothing of the others."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from speechlm.batch import places_of
from speechlm.nn.causal_lm import blocks
from speechlm.nn.document_attention import Attention, choose, document_mask, use_attention
from speechlm.nn.lora import LoraLinear
from speechlm.nn.loss_kernels import LossKernel, checked_kernel
from speechlm.nn.losses import chunk_of


class RowLosses(NamedTuple):
    """One entry for each id that is to be predicted, in the order of the rows."""

    losses: Tensor  # (N,) float32
    targets: Tensor  # (N,) int64 the ids themselves
    rows: Tensor  # (N,) int64 row of the batch


class PackedLM(nn.Module):
    """The one module of the language model whose forward is called in training.

    The loss is computed inside it, because under FSDP2 the output head's weight is whole only while this forward and its
    backward run.

    Args:
        lm: any causal LM of transformers; it stays as it is.
        attention: see `document_attention`.
        chunk: positions whose logits exist at a time; null is as many as have `LOGITS` logits.
        z_loss: see `token_losses`.
        loss: what computes head and losses.
        first: the softmax is over the ids from this one on, and only they are predicted; 0 is the whole vocabulary.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        attention: Attention = "auto",
        chunk: int | None = None,
        z_loss: float = 0.0,
        loss: LossKernel = "chunked",
        first: int = 0,
    ) -> None:
        super().__init__()
        choose(attention, torch.device("cpu"))
        if z_loss < 0 or (chunk is not None and chunk < 1):
            raise ValueError(f"the loss needs a chunk of at least 1 and z_loss >= 0, got {chunk} and {z_loss}")
        self.lm, self.attention, self.z_loss, self.loss = lm, attention, z_loss, loss
        self.chunk = chunk or chunk_of(lm.get_output_embeddings().weight.shape[0])
        self.first = first

    def forward(
        self, ids: Tensor, loss_mask: Tensor, doc_ids: Tensor, position_ids: Tensor, predicted: Tensor | None = None
    ) -> RowLosses:
        """Losses of a batch of rows.

        Args:
            ids: (B, S) int64.
            loss_mask: (B, S) bool, True where the id is to be predicted, from the position before it.
            doc_ids: (B, S) by document, -1 in padding.
            position_ids: (B, S) position of each id in its document.
            predicted: see `RowBatch`; looked up in the mask, which a GPU has to be waited for, where it is not given.
        """
        states = self.states(ids, doc_ids, position_ids).flatten(0, 1)
        predicted = places_of(loss_mask) if predicted is None else predicted
        targets = ids.flatten()[predicted]
        weight = self.lm.get_output_embeddings().weight[self.first :]
        kernel = checked_kernel(self.loss, states.device, states.dtype)
        losses = kernel(states[predicted - 1], weight, targets - self.first, self.chunk, self.z_loss)
        return RowLosses(losses, targets, predicted // ids.shape[1])

    def states(self, ids: Tensor, doc_ids: Tensor, position_ids: Tensor) -> Tensor:
        """(B, S, D) outputs of the last layer, each document knowing itself alone."""
        attention = choose(self.attention, ids.device)
        use_attention(self.lm, attention)
        mask = document_mask(doc_ids, attention)
        out = self.lm.base_model(input_ids=ids, attention_mask=mask, position_ids=position_ids, use_cache=False)
        return out.last_hidden_state

    def logits(self, ids: Tensor, doc_ids: Tensor, position_ids: Tensor) -> Tensor:
        """(B, S, V) logits, all at once."""
        return self.lm.get_output_embeddings()(self.states(ids, doc_ids, position_ids))


class Cost(NamedTuple):
    """Floating-point operations of training that learn something: forward and backward, no recomputation, no padding."""

    per_token: float  # of every id that is not padding
    per_target: float  # of every id that is predicted: the output head
    per_pair: float  # of every position seen by another, itself included: attention

    def of(self, loss_mask: Tensor, doc_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Scalar, of a batch."""
        real = doc_ids >= 0
        pairs = ((position_ids + 1) * real).sum().double()
        return self.per_token * real.sum() + self.per_target * loss_mask.sum() + self.per_pair * pairs


def training_cost(lm: PreTrainedModel, first: int = 0) -> Cost:
    """What an id costs: two operations per weight and pass (forward, gradient of the input, gradient of the weight).

    A weight that is not trained has no gradient; the lookup of embeddings costs nothing, nor do the head's rows before `first`.
    Computed before the weights are spread over ranks.
    """
    head = lm.get_output_embeddings()
    layers = [part for block in blocks(lm) for part in block.modules() if isinstance(part, nn.Linear)]
    config = lm.config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Cost(
        per_token=float(sum(map(_linear_cost, layers))),
        per_target=_linear_cost(head) * (1 - first / len(head.weight)),
        per_pair=12.0
        * config.num_hidden_layers
        * heads
        * head_dim,  # scores and sums of values, each forward and twice back
    )


def _linear_cost(linear: nn.Module) -> int:
    assert isinstance(linear, nn.Linear)
    own = (6 if linear.weight.requires_grad else 4) * linear.weight.numel()
    return own + 6 * (linear.lora_a.numel() + linear.lora_b.numel() if isinstance(linear, LoraLinear) else 0)
