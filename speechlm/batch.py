"""The batches that pass between data and stages: one dataclass each, a shape per field."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class AudioBatch:
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
