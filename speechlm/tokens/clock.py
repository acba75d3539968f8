"""The clock: how seconds, samples, mel frames and speech tokens relate. The only place that rounds a time."""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import TypeVar

from torch import Tensor

Count = TypeVar("Count", int, Tensor)  # a whole number, or a tensor of them


@dataclass(frozen=True)
class Clock:
    """Rates of one audio side of the system, and exact conversions between its units.

    A token owns the half-open span of samples ``[t * samples_per_token, (t + 1) * samples_per_token)``; the last token of a
    recording may be only partly filled, so counts of tokens round up and counts of frames made from tokens round down.

    Args:
        sample_rate_hz: waveform samples per second.
        token_rate_hz: speech tokens per second.
        hop_samples: samples between two mel frames.

    Raises:
        ValueError: a rate is not positive, or a token does not span a whole number of samples.
    """

    sample_rate_hz: int = 16_000
    token_rate_hz: float = 12.5
    hop_samples: int = 160

    def __post_init__(self) -> None:
        if self.sample_rate_hz <= 0 or self.token_rate_hz <= 0 or self.hop_samples <= 0:
            raise ValueError(f"every rate must be positive, got {self}; edit `clock` in the config")
        ratio = self._samples_per_token
        if ratio.denominator != 1:
            raise ValueError(
                f"a speech token must span a whole number of samples, got {self.sample_rate_hz} Hz / "
                f"{self.token_rate_hz} Hz = {float(ratio):.2f}; edit `clock` in the config"
            )

    @property
    def _samples_per_token(self) -> Fraction:
        return Fraction(self.sample_rate_hz) / Fraction(str(self.token_rate_hz))

    @property
    def samples_per_token(self) -> int:
        """Samples one speech token spans: 1280 at 16 kHz and 12.5 Hz."""
        return int(self._samples_per_token)

    def num_samples(self, seconds: float) -> int:
        """Samples in `seconds`, to the nearest sample (ties to even, as a recording's own length is whole anyway)."""
        return round(seconds * self.sample_rate_hz)

    def num_tokens(self, num_samples: int) -> int:
        """Speech tokens of a recording: 1.00 s at 12.5 Hz is 13 tokens, the last half filled."""
        return -(-num_samples // self.samples_per_token)

    def num_frames(self, num_samples: int) -> int:
        """Mel frames that start inside `num_samples`, the last one partly filled."""
        return -(-num_samples // self.hop_samples)

    def frames_of_tokens(self, num_tokens: Count) -> Count:
        """Whole mel frames that `num_tokens` tokens fill: 10 tokens are 68 frames at 22.05 kHz and hop 256."""
        return num_tokens * self.samples_per_token // self.hop_samples

    def token_of_frame(self, frame: Count) -> Count:
        """Which token is spoken in the middle of a mel frame: frame 68 is the first that lies across the border of tokens 9 and
        10, and its middle is in token 9."""
        return (frame * self.hop_samples + self.hop_samples // 2) // self.samples_per_token

    def part_of_frame(self, frame: Count, parts: int) -> Count:
        """In which of so many equal parts of its token's span the middle of a mel frame lies."""
        return (
            (frame * self.hop_samples + self.hop_samples // 2)
            % self.samples_per_token
            * parts
            // self.samples_per_token
        )

    def block_of_frame(self, frame: Count, block_tokens: int) -> Count:
        """Which block of tokens must be known before a mel frame is whole: the one that holds the frame's last sample."""
        return ((frame + 1) * self.hop_samples - 1) // (block_tokens * self.samples_per_token)

    def samples_of_tokens(self, num_tokens: int) -> int:
        """Samples that `num_tokens` full tokens span."""
        return num_tokens * self.samples_per_token

    def seconds_of_samples(self, num_samples: int) -> float:
        """Duration of `num_samples`, in seconds."""
        return num_samples / self.sample_rate_hz

    def seconds_of_tokens(self, num_tokens: int) -> float:
        """Duration of `num_tokens` full tokens, in seconds."""
        return self.seconds_of_samples(self.samples_of_tokens(num_tokens))

    def pooling(self, positions_per_sec: float) -> int:
        """How many encoder positions one token pools: 4 for Whisper's 50 Hz positions and 12.5 Hz tokens.

        Raises:
            ValueError: the encoder's rate is not a whole multiple of the token rate.
        """
        kernel = Fraction(str(positions_per_sec)) / Fraction(str(self.token_rate_hz))
        if kernel.denominator != 1:
            raise ValueError(
                f"the encoder makes {positions_per_sec} positions per second, which {self.token_rate_hz} tokens per second "
                f"do not divide ({float(kernel):.2f} positions each); edit `clock.token_rate_hz` in the config"
            )
        return ceil(kernel)
