"""Log-likelihood of many sequences at once: packed, what they share computed once, the output head on what counts.

The two endings of a story follow the same context, in four modes four times; such sequences are one tree: its beginning is
computed once, and each ending sees it and itself. Trees and lone sequences, of similar length, lie one behind the other in a row.

What is scored are speech and text ids; control tokens between them are given, not scored. Two numbers for each id: among all
ids, and among the ids of its own kind, as if a model could not change modality there. Published protocols differ in exactly
this (slamkit masks where asked, Spirit-LM does not), so both are always computed; the second costs nothing.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from speechlm.evals.parts import Likelihood, Scorable, Sum
from speechlm.nn.prefix_attention import PrefixAttention, prefix_mask
from speechlm.tokens.vocab import Vocab

TILE = 512  # columns of the head at a time on a CPU: with as many ids, their logits stay in its cache


class Tree(NamedTuple):
    """Sequences with the same `shared` first ids; one alone shares all of its own."""

    shared: int
    numbers: tuple[int, ...]  # of the sequences
    size: int  # ids, what is shared counted once


class _Place(NamedTuple):
    """Where a sequence lies in a row: positions of what it shares, and of its own."""

    number: int
    shared: tuple[int, int]
    own: tuple[int, int]


class _Row(NamedTuple):
    """Trees one behind the other."""

    ids: Tensor  # (S,)
    depth: Tensor  # (S,) position in the sequence
    seen_until: Tensor  # (S,) see `prefix_mask`
    before: Tensor  # (S,) position of the id before each; of a first one its own
    places: list[_Place]


class PackedLikelihood:
    """Scores with a causal LM of transformers, in its precision, on its device.

    Args:
        lm: in eval mode.
        vocab: of its ids.
        row: ids of one pass; a longer sequence has a pass of its own.
        chunk: ids whose logits exist at a time; by default what a CPU's cache holds, more on a GPU.
        attention: see `prefix_mask`.
        least_shared: ids that sequences must have in common to be one tree.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        vocab: Vocab,
        row: int = 4096,
        chunk: int | None = None,
        attention: PrefixAttention = "auto",
        least_shared: int = 8,
    ) -> None:
        self.lm, self.vocab, self.row, self.attention = lm, vocab, row, attention
        self.least_shared = least_shared
        self.device = lm.get_input_embeddings().weight.device
        on_gpu = self.device.type == "cuda"
        self.chunk, self.tile = chunk or (4096 if on_gpu else TILE), 2**31 if on_gpu else TILE

    @torch.inference_mode()
    def __call__(self, sequences: Sequence[Scorable]) -> list[Likelihood]:
        """One `Likelihood` per sequence; of one that has nothing to score the counts are 0."""
        found: dict[int, Likelihood] = {}
        for row in self._rows(sequences):
            counts = (self.vocab.is_speech(row.ids) | self.vocab.is_text(row.ids)) & (row.depth > 0)
            states = self._states(row)[row.before[counts].to(self.device)]
            nll, masked = self._losses(states, row.ids[counts])
            before = [0, *counts.cumsum(0).tolist()]  # scored ids before each position
            for place in row.places:
                ending = _from(place, sequences[place.number].ending)
                sums = [_sum(nll, masked, [(before[b], before[e]) for b, e in spans]) for spans in (place[1:], ending)]
                found[place.number] = Likelihood(*sums)
        return [found[n] for n in range(len(sequences))]

    def _rows(self, sequences: Sequence[Scorable]) -> Iterator[_Row]:
        """Longest first, so that what does not fit is met at once, rows are full, and neighbours are of similar length."""
        made = trees([one.ids for one in sequences], self.row, self.least_shared)
        taken: list[Tree] = []
        for tree in sorted(made, key=lambda tree: -tree.size):
            if taken and sum(t.size for t in taken) + tree.size > self.row:
                yield _packed(taken, sequences)
                taken = []
            taken.append(tree)
        if taken:
            yield _packed(taken, sequences)

    def _states(self, row: _Row) -> Tensor:
        """(S, D) outputs of the last layer."""
        mask = prefix_mask(self.lm, row.seen_until.to(self.device), self.attention)
        ids, depth = row.ids[None].to(self.device), row.depth[None].to(self.device)
        out = self.lm.base_model(input_ids=ids, attention_mask=mask, position_ids=depth, use_cache=False)
        states = out.last_hidden_state[0]
        assert isinstance(states, Tensor)
        return states

    def _losses(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) float64 losses among all ids and among those of the same kind."""
        head = self.lm.get_output_embeddings()
        plain, masked = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.float64)]
        for begin in range(0, len(targets), self.chunk):
            own = states[begin : begin + self.chunk]
            wanted = targets[begin : begin + self.chunk].to(own.device)
            weight, bias = head.weight[wanted].float(), getattr(head, "bias", None)
            target = (own.float() * weight).sum(1) + (0.0 if bias is None else bias[wanted].float())
            text, speech, everything = self._denominators(own)
            plain.append((everything - target).double().cpu())
            masked.append((torch.where(self.vocab.is_speech(wanted), speech, text) - target).double().cpu())
        return torch.cat(plain), torch.cat(masked)

    def _denominators(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) log-sums over text, speech and everything of (N, D); each logit exists and is exponentiated once."""
        rows = self.lm.get_output_embeddings().weight.shape[0]
        edges = [0, self.vocab.num_text, self.vocab.speech_offset, len(self.vocab), rows]
        sums = [self._log_sum(states, begin, end) for begin, end in itertools.pairwise(edges)]
        return sums[0], sums[2], torch.stack(sums).logsumexp(0)

    def _log_sum(self, states: Tensor, begin: int, end: int) -> Tensor:
        """(N,) log-sum-exp over the ids begin <= i < end, minus infinity over none."""
        head, parts = self.lm.get_output_embeddings(), [states.new_full((len(states),), -torch.inf, dtype=torch.float)]
        bias = getattr(head, "bias", None)
        for a in range(begin, end, self.tile):
            some = slice(a, min(end, a + self.tile))
            logits = F.linear(states, head.weight[some], None if bias is None else bias[some]).float()
            parts.append(logits[:, 0] - logits.log_softmax(1)[:, 0])  # twice as fast as torch's logsumexp
        return torch.stack(parts).logsumexp(0)


def trees(sequences: Sequence[tuple[int, ...]], most: int, least_shared: int) -> list[Tree]:
    """Put sequences together that begin with the same ids.

    In the order of their ids neighbours share most. The next one joins a tree where that saves more ids than it loses by making
    what is shared shorter.

    Args:
        sequences: ids of each.
        most: ids of a tree of several.
        least_shared: ids they must share.
    """
    made: list[Tree] = []
    for number in sorted(range(len(sequences)), key=lambda n: sequences[n]):
        ids = sequences[number]
        joined = _joined(made[-1], number, sequences) if made else None
        saved = joined.shared * (len(joined.numbers) - 1) if joined else 0
        before = made[-1].shared * (len(made[-1].numbers) - 1) if made else 0
        if joined and joined.shared >= least_shared and joined.size <= most and saved > before:
            made[-1] = joined
        else:
            made.append(Tree(len(ids), (number,), len(ids)))
    return made


def _joined(tree: Tree, number: int, sequences: Sequence[tuple[int, ...]]) -> Tree:
    first, ids = sequences[tree.numbers[0]], sequences[number]
    shared = 0
    while shared < min(tree.shared, len(ids)) and first[shared] == ids[shared]:
        shared += 1
    numbers = (*tree.numbers, number)
    return Tree(shared, numbers, shared + sum(len(sequences[n]) - shared for n in numbers))


def _packed(taken: Sequence[Tree], sequences: Sequence[Scorable]) -> _Row:
    columns: tuple[list[int], ...] = ([], [], [], [])  # ids, depth, seen until, before
    places = list[_Place]()
    for tree in taken:
        root = len(columns[0])
        shared = _append(columns, sequences[tree.numbers[0]].ids[: tree.shared], 0, root, root + tree.size)
        for n in tree.numbers:
            own = sequences[n].ids[tree.shared :]
            begin = len(columns[0])
            places.append(_Place(n, shared, _append(columns, own, tree.shared, shared[1] - 1, begin + len(own))))
    ids, depth, until, before = map(torch.tensor, columns)
    return _Row(ids, depth, until, before, places)


def _append(columns: tuple[list[int], ...], ids: Sequence[int], depth: int, before: int, until: int) -> tuple[int, int]:
    """A stretch whose first id has this depth and this position before it; where it lies."""
    begin, end = len(columns[0]), len(columns[0]) + len(ids)
    columns[0].extend(ids)
    columns[1].extend(range(depth, depth + len(ids)))
    columns[2].extend([until] * len(ids))
    columns[3].extend([before, *range(begin, end - 1)] if ids else [])
    return begin, end


def _from(place: _Place, ending: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The spans of a sequence from an id on."""
    (root, split), (begin, end) = place.shared, place.own
    own = begin + max(0, ending - (split - root))
    return (min(root + ending, split), split), (min(own, end), end)


def _sum(nll: Tensor, masked: Tensor, spans: Sequence[tuple[int, int]]) -> Sum:
    """Over spans of the losses."""
    values = [sum(float(losses[b:e].sum()) for b, e in spans) for losses in (nll, masked)]
    return Sum(values[0], values[1], sum(e - b for b, e in spans))
