"""What every vocoder network promises: log-mel in, waveform out, whole or as a stream."""

from typing import NamedTuple, Protocol

from torch import Tensor, nn


class Spoken(NamedTuple):
    """The outcome of one pass through a vocoder."""

    audio: Tensor  # (B, F * hop) float32 in [-1, 1]
    f0: Tensor | None  # (B, F) Hz that the network heard in the mel, where it listens for pitch


class Stream(Protocol):
    """A recording that is being spoken: mel frames are handed over as they come, audio is handed back as it is final."""

    def push(self, mel: Tensor, last: bool = False) -> Tensor:
        """(B, M, F) further frames, at least one unless it is the last call -> (B, N) the samples that they make final."""


class Generator(nn.Module):
    """Base of all vocoder networks: rates and shapes, nothing else.

    Args:
        num_mels: mel bins M.
        hop_samples: samples made of each mel frame.
        sample_rate_hz: of the waveform.
    """

    def __init__(self, num_mels: int, hop_samples: int, sample_rate_hz: int) -> None:
        super().__init__()
        self.num_mels, self.hop_samples, self.sample_rate_hz = num_mels, hop_samples, sample_rate_hz

    def forward(
        self, mel: Tensor, mel_lens: Tensor | None = None, seeds: Tensor | None = None, f0: Tensor | None = None
    ) -> Spoken:
        """Waveforms of (B, M, F) log-mels.

        Args:
            mel: natural logarithm of magnitudes, see `MelSpectrogram`.
            mel_lens: (B,) frames; None where every recording fills its row. What lies behind a recording's end changes nothing.
            seeds: (B,) int64, of the noise in networks that have some; zeros where not given.
            f0: (B, F) Hz to speak with instead of what the network hears, in networks that listen for pitch.
        """
        raise TypeError(f"{type(self).__name__} must define forward")

    def stream(self, batch_size: int = 1, seed: int = 0) -> Stream:
        """Speak `batch_size` recordings side by side as their mels come."""
        raise TypeError(f"{type(self).__name__} must define stream")

    @property
    def lookahead_frames(self) -> int:
        """Mel frames behind a sample that it depends on: by so much a stream is behind its mel."""
        raise TypeError(f"{type(self).__name__} must define lookahead_frames")
