"""The batches that pass between data and stages: one dataclass each, a shape per field."""

import re
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

REPEATED = re.compile(r"_dup\d+$")  # what Lhotse's samplers put behind the id of a recording they give out again


class Recordings:
    """What every batch of recordings answers."""

    audio: Tensor
    audio_lens: Tensor
    sample_rate_hz: int

    def __len__(self) -> int:
        return self.audio.shape[0]

    @property
    def seconds(self) -> float:
        """Seconds of real audio in the batch, padding not counted."""
        return float(self.audio_lens.sum()) / self.sample_rate_hz

    @property
    def padding_share(self) -> float:
        """Share of the padded samples that are padding, in [0, 1)."""
        return 1.0 - float(self.audio_lens.sum()) / max(1, self.audio.numel())


@dataclass
class AudioBatch(Recordings):
    """Recordings with transcripts, padded on the right.

    Attributes:
        audio: (B, N) float32 waveform in [-1, 1], zeros behind each recording's end.
        audio_lens: (B,) int64 samples.
        texts: B transcripts, as the corpus writes them; the stage that reads them brings the text tokenizer.
        cut_ids: B ids of the cuts, for messages and reports.
        languages: B language codes ("en"), or an empty list where none is known.
        sample_rate_hz: samples per second of `audio`.
        skipped: (cut id, reason) of recordings that should have been in the batch and could not be used.
    """

    audio: Tensor
    audio_lens: Tensor
    texts: list[str]
    cut_ids: list[str]
    languages: list[str]
    sample_rate_hz: int
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def repeated(self) -> list[bool]:
        """B times whether another rank has the recording too: at the end of a set each rank needs one, there may be fewer."""
        return [REPEATED.search(name) is not None for name in self.cut_ids]


@dataclass
class ResynthesisBatch(Recordings):
    """Recordings with their speech tokens, padded on the right: what tokens are to become.

    Attributes:
        speech_tokens: (B, T) int64 tokenizer ids, -1 behind each recording's end; T is 0 where none were asked for.
        speech_token_lens: (B,) int64 tokens.
        audio: (B, N) float32 waveform in [-1, 1], zeros behind each recording's end; token t belongs to the samples of its span,
            the last one may be filled in part.
        audio_lens: (B,) int64 samples.
        sample_rate_hz: samples per second of `audio`.
        speakers: B names of speakers, "" where none is known.
        texts: B transcripts, "" where none is known.
        cut_ids: B ids of the cuts, for messages and reports.
        skipped: (cut id, reason) of recordings that should have been in the batch and could not be used.
        f0: (B, F) float32 Hz in the middle of each mel frame, 0 where there is no voice; None where it was not asked for.
        languages: B language codes ("en"), or an empty list where none is known.
    """

    speech_tokens: Tensor
    speech_token_lens: Tensor
    audio: Tensor
    audio_lens: Tensor
    sample_rate_hz: int
    speakers: list[str]
    texts: list[str]
    cut_ids: list[str]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    f0: Tensor | None = None
    languages: list[str] = field(default_factory=list)


@dataclass
class RowBatch:
    """Packed rows of several documents each, for the language model.

    Documents of a row follow each other from its first position on, padding is at its end. Attention must stay inside a document.
    A row may have no loss at all (padding rows that keep ranks in step have none), so a mean divides by a count over the batch.

    Attributes:
        ids: (B, S) int64 shared ids of `Vocab`.
        loss_mask: (B, S) bool, True where `ids` is to be predicted, from the position before it. Never True at a document's first
            position, where nothing is before it, nor in padding.
        doc_ids: (B, S) int32, 0, 1, … by document of the row, -1 in padding: compared for equality, padding attends to itself.
        source_ids: (B,) int64 which of `sources` a row is from.
        sources: names of the sources, for metrics.
        languages: their languages ("en"), in the same order, "" where none is known.
        predicted: (N,) int64 places of the B x S ids at which `loss_mask` is True, ascending; None until `looked_up`.
    """

    ids: Tensor
    loss_mask: Tensor
    doc_ids: Tensor
    source_ids: Tensor
    sources: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    predicted: Tensor | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    def looked_up(self, pin: bool = False) -> "RowBatch":
        """The batch with what can be known of it in the host's memory, so that no accelerator is waited for.

        Args:
            pin: in memory from which a GPU copies by itself.
        """
        predicted = places_of(self.loss_mask)
        tensors = (self.ids, self.loss_mask, self.doc_ids, self.source_ids, predicted)
        ids, mask, docs, sources, predicted = (tensor.pin_memory() if pin else tensor for tensor in tensors)
        return RowBatch(ids, mask, docs, sources, self.sources, self.languages, predicted)

    def to(self, device: torch.device) -> "RowBatch":
        """The batch on a device; itself where it is there. A GPU copies while the host goes on."""
        if self.ids.device == device:
            return self
        tensors = (self.ids, self.loss_mask, self.doc_ids, self.source_ids)
        ids, mask, docs, sources = (tensor.to(device, non_blocking=device.type == "cuda") for tensor in tensors)
        predicted = None if self.predicted is None else self.predicted.to(device, non_blocking=device.type == "cuda")
        return RowBatch(ids, mask, docs, sources, self.sources, self.languages, predicted)

    @property
    def position_ids(self) -> Tensor:
        """(B, S) int64 position of each id in its document, from 0; the padding counts from 0 too.

        Made from `doc_ids` where they lie: eight bytes per id that need not travel to the accelerator.
        """
        indices = torch.arange(self.doc_ids.shape[1], device=self.doc_ids.device).expand_as(self.doc_ids)
        begins = torch.zeros_like(indices)
        begins[:, 1:] = indices[:, 1:] * (self.doc_ids[:, 1:] != self.doc_ids[:, :-1])
        return indices - begins.cummax(1).values

    @property
    def num_tokens(self) -> int:
        """Ids that are not padding."""
        return int((self.doc_ids >= 0).sum())

    @property
    def padding_share(self) -> float:
        """Share of the positions that are padding, in [0, 1]."""
        return 1.0 - self.num_tokens / max(1, self.ids.numel())


def places_of(loss_mask: Tensor) -> Tensor:
    """(N,) int64 places in B x S at which a (B, S) mask is True; a row's first position can not be predicted."""
    if loss_mask.device.type == "cpu":  # numpy is several times faster than torch at this
        places = torch.from_numpy(np.flatnonzero(loss_mask.numpy()))
    else:
        places = loss_mask.flatten().nonzero()[:, 0]
    first = places % loss_mask.shape[1] == 0 if loss_mask[:, 0].any() else None
    return places if first is None else places[~first]
