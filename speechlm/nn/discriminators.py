"""Judges of waveforms (discriminators): by what repeats with a period, and by spectrograms of several resolutions.

HiFi-GAN (https://arxiv.org/abs/2010.05646) and UnivNet (https://arxiv.org/abs/2106.07889), with the numbers of CosyVoice.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.nn.weight_norm import normed

SLOPE = 0.1


class Judgement(NamedTuple):
    """What one judge says of a batch."""

    scores: Tensor  # (B, n), near 1 where it takes the sound for real, near 0 where not
    features: list[Tensor]  # (B, C, …) of every layer


class Discriminator(nn.Module):
    """Base of all judges: shapes, nothing else."""

    def forward(self, audio: Tensor) -> list[Judgement]:
        """(B, N) waveforms -> the judgement of each judge; recordings of a batch do not see each other."""
        raise TypeError(f"{type(self).__name__} must define forward")


class PeriodJudge(Discriminator):
    """Looks at every p-th sample: one of the multi-period discriminator (MPD).

    Args:
        period: p.
        channels: of the layers; the last of them does not narrow time.
    """

    def __init__(self, period: int, channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)) -> None:
        super().__init__()
        self.period = period
        strides = [3] * (len(channels) - 1) + [1]
        self.convs = nn.ModuleList(
            normed(nn.Conv2d(narrow, wide, (5, 1), (stride, 1), padding=(2, 0)))
            for narrow, wide, stride in zip((1, *channels), channels, strides, strict=False)
        )
        self.post = normed(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, audio: Tensor) -> list[Judgement]:
        """(B, N), N at least twice the period."""
        audio = F.pad(audio[:, None], (0, -audio.shape[1] % self.period), "reflect")
        return [_judged(audio.unflatten(2, (-1, self.period)), self.convs, self.post)]


class SpectrumJudge(Discriminator):
    """Looks at the magnitudes of one short-time Fourier transform, in float32: one of the multi-resolution discriminator (MRD).

    Args:
        n_fft: bins come from it.
        hop: samples between frames.
        window: samples under a Hann window.
        channels: of every layer.
    """

    hann: Tensor  # (window,)

    def __init__(self, n_fft: int, hop: int, window: int, channels: int = 32) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        self.convs = nn.ModuleList(
            [
                normed(nn.Conv2d(1, channels, (3, 9), padding=(1, 4))),
                *(normed(nn.Conv2d(channels, channels, (3, 9), (1, 2), padding=(1, 4))) for _ in range(3)),
                normed(nn.Conv2d(channels, channels, 3, padding=1)),
            ]
        )
        self.post = normed(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, audio: Tensor) -> list[Judgement]:
        """(B, N), N at least half the transform."""
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(
                audio.float(), self.n_fft, self.hop, len(self.hann), window=self.hann, return_complex=True
            )
            # The square root of a sum that is never zero: the magnitude itself has no gradient in silence.
            magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
        return [_judged(magnitude.transpose(1, 2)[:, None], self.convs, self.post)]


class Jury(Discriminator):
    """Judges for several periods and several resolutions: MPD and MRD together.

    Args:
        periods: in samples.
        resolutions: (transform, hop, window) in samples.
        period_channels: of each `PeriodJudge`.
        spectrum_channels: of each `SpectrumJudge`.
    """

    def __init__(
        self,
        periods: tuple[int, ...] = (2, 3, 5, 7, 11),
        resolutions: tuple[tuple[int, int, int], ...] = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)),
        period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024),
        spectrum_channels: int = 32,
    ) -> None:
        super().__init__()
        if not periods and not resolutions:
            raise ValueError("a jury without periods and resolutions has nobody to judge; give at least one")
        self.judges = nn.ModuleList(
            [
                *(PeriodJudge(period, period_channels) for period in periods),
                *(SpectrumJudge(*resolution, spectrum_channels) for resolution in resolutions),
            ]
        )

    def forward(self, audio: Tensor) -> list[Judgement]:
        """(B, N), N at least half of the longest transform."""
        return [judgement for judge in self.judges for judgement in judge(audio)]


def _judged(x: Tensor, convs: nn.ModuleList, post: nn.Module) -> Judgement:
    features = []
    for conv in convs:
        x = F.leaky_relu(conv(x), SLOPE)
        features.append(x)
    x = post(x)
    return Judgement(x.flatten(1).float(), [*features, x])
