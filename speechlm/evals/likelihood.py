"""Log-likelihood of many sequences at once: packed one behind the other, each knowing itself alone, the head on what counts.

What is scored are speech and text ids; control tokens between them are given, not scored. Two numbers for each id: among all
ids, and among the ids of its own kind, as if a model could not change modality there. Published protocols differ in exactly
this (slamkit masks where asked, Spirit-LM does not), so both are always computed; the second costs nothing.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from speechlm.evals.parts import Likelihood, Scorable, Sum
from speechlm.nn.document_attention import Attention
from speechlm.nn.packed_lm import PackedLM
from speechlm.tokens.vocab import Vocab


class _Packed(NamedTuple):
    """Sequences in one row."""

    numbers: list[int]  # of the sequences
    ids: Tensor  # (1, S)
    doc_ids: Tensor  # (1, S)
    position_ids: Tensor  # (1, S)
    scored: Tensor  # (N,) places in the row whose ids are scored
    owner: Tensor  # (N,) which sequence of the row
    ending: Tensor  # (N,) bool, whether it is the ending's


class PackedLikelihood:
    """Scores with a causal LM of transformers, in its precision, on its device.

    Args:
        lm: in eval mode.
        vocab: of its ids.
        row: ids of one pass; a longer sequence has a pass of its own.
        chunk: ids whose logits exist at a time; by default what a CPU's cache holds, more on a GPU.
        attention: see `document_attention`.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        vocab: Vocab,
        row: int = 4096,
        chunk: int | None = None,
        attention: Attention = "auto",
    ) -> None:
        self.model, self.vocab, self.row = PackedLM(lm, attention), vocab, row
        self.device = lm.get_input_embeddings().weight.device
        self.chunk = chunk or (4096 if self.device.type == "cuda" else 160)

    @torch.inference_mode()
    def __call__(self, sequences: Sequence[Scorable]) -> list[Likelihood]:
        """One `Likelihood` per sequence; of one that has nothing to score the counts are 0."""
        found: dict[int, Likelihood] = {}
        for row in self._rows(sequences):
            states = self.model.states(*(t.to(self.device) for t in (row.ids, row.doc_ids, row.position_ids)))[0]
            targets = row.ids[0, row.scored]
            nll, masked = self._losses(states[(row.scored - 1).to(self.device)], targets)
            for number, sequence in enumerate(row.numbers):
                own = row.owner == number
                found[sequence] = Likelihood(
                    _sum(nll[own], masked[own]), _sum(nll[own & row.ending], masked[own & row.ending])
                )
        return [found[n] for n in range(len(sequences))]

    def _rows(self, sequences: Sequence[Scorable]) -> Iterator[_Packed]:
        """Longest first, so that what does not fit is met at once and rows are full."""
        order = sorted(range(len(sequences)), key=lambda n: -len(sequences[n].ids))
        taken: list[int] = []
        for n in order:
            if taken and sum(len(sequences[t].ids) for t in taken) + len(sequences[n].ids) > self.row:
                yield self._packed(taken, sequences)
                taken = []
            taken.append(n)
        if taken:
            yield self._packed(taken, sequences)

    def _packed(self, numbers: list[int], sequences: Sequence[Scorable]) -> _Packed:
        lens = torch.tensor([len(sequences[n].ids) for n in numbers])
        ids = torch.tensor([i for n in numbers for i in sequences[n].ids])
        owner = torch.repeat_interleave(torch.arange(len(numbers)), lens)
        position = torch.arange(len(ids)) - (lens.cumsum(0) - lens)[owner]
        ending = position >= torch.tensor([sequences[n].ending for n in numbers])[owner]
        counts = (self.vocab.is_speech(ids) | self.vocab.is_text(ids)) & (position > 0)
        places = counts.nonzero()[:, 0]
        return _Packed(numbers, ids[None], owner[None], position[None], places, owner[places], ending[places])

    def _losses(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) float64 losses among all ids and among those of the same kind."""
        head = self.model.lm.get_output_embeddings()
        plain, masked = [], []
        for begin in range(0, len(targets), self.chunk):
            logits = head(states[begin : begin + self.chunk]).float()
            wanted = targets[begin : begin + self.chunk].to(logits.device)
            target = logits.gather(1, wanted[:, None])[:, 0]
            text, speech, everything = self._denominators(logits)
            plain.append((everything - target).double().cpu())
            masked.append((torch.where(self.vocab.is_speech(wanted), speech, text) - target).double().cpu())
        empty = [torch.zeros(0, dtype=torch.float64)]
        return torch.cat(plain or empty), torch.cat(masked or empty)

    def _denominators(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) log-sums over text, speech and everything of (N, V); each logit is exponentiated once."""
        edges = [0, self.vocab.num_text, self.vocab.speech_offset, len(self.vocab), logits.shape[1]]
        sums = [_log_sum(logits[:, a:b]) for a, b in itertools.pairwise(edges)]
        return sums[0], sums[2], torch.stack(sums).logsumexp(0)


def _log_sum(logits: Tensor) -> Tensor:
    """(N,) log-sum-exp of (N, V), minus infinity of nothing; torch's fused softmax is twice as fast at it as its logsumexp."""
    if not logits.shape[1]:
        return logits.new_full((len(logits),), -torch.inf)
    return logits[:, 0] - logits.log_softmax(1)[:, 0]


def _sum(nll: Tensor, masked: Tensor) -> Sum:
    return Sum(float(nll.sum()), float(masked.sum()), len(nll))
