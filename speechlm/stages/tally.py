"""Losses and counts by source, language and modality, exact over batches and ranks."""

from collections.abc import Iterator

import torch
from torch import Tensor

from speechlm.batch import RowBatch
from speechlm.nn.packed_lm import RowLosses
from speechlm.nn.quantizer import sum_over_ranks
from speechlm.tokens.vocab import Vocab

MODALITIES = ("text", "speech")  # whatever is not a speech code counts as text
LOSS, TARGETS, TOKENS = range(3)


class Tally:
    """Sums over ids; two of them add up.

    Args:
        sources: names, as the batches have them.
        languages: of the sources, "" where unknown.
        device: where the sums are.
    """

    def __init__(self, sources: list[str], languages: list[str], device: torch.device) -> None:
        self.sources = list(sources) or ["all"]
        self.languages = list(languages) or [""] * len(self.sources)
        self.sums = torch.zeros(3, len(self.sources), len(MODALITIES), dtype=torch.float64, device=device)

    @classmethod
    def of(cls, batch: RowBatch, out: RowLosses, vocab: Vocab) -> "Tally":
        """Of one batch."""
        tally = cls(batch.sources, batch.languages, batch.ids.device)
        group = batch.source_ids[out.rows] * len(MODALITIES) + vocab.is_speech(out.targets)
        real = batch.doc_ids >= 0
        all_groups = batch.source_ids[:, None] * len(MODALITIES) + vocab.is_speech(batch.ids)
        flat = tally.sums.view(3, -1)
        flat[LOSS].index_add_(0, group, out.losses.detach().double())
        flat[TARGETS].index_add_(0, group, torch.ones_like(group, dtype=torch.float64))
        flat[TOKENS].index_add_(0, all_groups.flatten(), real.flatten().double())
        return tally

    def __add__(self, other: "Tally") -> "Tally":
        assert (self.sources, self.languages) == (other.sources, other.languages), (self.sources, other.sources)
        total = Tally(self.sources, self.languages, self.sums.device)
        total.sums = self.sums + other.sums
        return total

    def over_ranks(self) -> "Tally":
        """The sum of all ranks, which all must ask for."""
        total = Tally(self.sources, self.languages, self.sums.device)
        total.sums = sum_over_ranks(self.sums.clone())
        return total

    def forget_losses(self) -> None:
        """The ids were read, but their losses are not to spoil any mean."""
        self.sums[[LOSS, TARGETS]] = 0.0

    @property
    def loss(self) -> Tensor:
        """Scalar, mean over all targets; 0 without any."""
        return (self.sums[LOSS].sum() / self.sums[TARGETS].sum().clamp(min=1)).float()

    @property
    def targets(self) -> Tensor:
        """Scalar, ids that were to be predicted."""
        return self.sums[TARGETS].sum()

    def losses(self) -> Iterator[tuple[str, float]]:
        """Mean losses by name: `loss_text`, `loss_speech`, and with more than one, `loss_by_source/…`, `loss_by_language/…`."""
        sums = self.sums.cpu()
        for index, modality in enumerate(MODALITIES):
            yield from _mean(f"loss_{modality}", sums[:, :, index])
        if len(self.sources) > 1:
            for number, source in enumerate(self.sources):
                yield from _mean(f"loss_by_source/{source}", sums[:, number])
                for index, modality in enumerate(MODALITIES):
                    yield from _mean(f"loss_by_source/{source}_{modality}", sums[:, number, index])
        if len(set(self.languages)) > 1:
            for language, mine in self._by_language():
                yield from _mean(f"loss_by_language/{language}", sums[:, mine])

    def tokens(self) -> Iterator[tuple[str, float]]:
        """Ids that are not padding, by source, language and modality."""
        sums = self.sums[TOKENS].cpu()
        yield "tokens_seen", float(sums.sum())
        for index, modality in enumerate(MODALITIES):
            yield f"tokens_seen_{modality}", float(sums[:, index].sum())
        for number, source in enumerate(self.sources):
            yield f"tokens_seen/{source}", float(sums[number].sum())
        for language, mine in self._by_language():
            yield f"tokens_seen_by_language/{language}", float(sums[mine].sum())

    def _by_language(self) -> Iterator[tuple[str, list[int]]]:
        for language in sorted(set(self.languages) - {""}):
            yield language, [index for index, own in enumerate(self.languages) if own == language]


def _mean(name: str, sums: Tensor) -> Iterator[tuple[str, float]]:
    if targets := float(sums[TARGETS].sum()):
        yield name, float(sums[LOSS].sum()) / targets
