"""HiFT: mel to waveform by a neural source filter that ends in an inverse Fourier transform. https://arxiv.org/abs/2309.09493

The form is that of CosyVoice and GLM-4-Voice; modules are named as in their released weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.nn.generator import Generator, Spoken
from speechlm.nn.hift_source import F0Predictor, HarmonicSource
from speechlm.nn.hift_stream import HiFTStream
from speechlm.nn.masks import length_mask, masked
from speechlm.nn.short_stft import ShortSTFT
from speechlm.nn.snake import Snake
from speechlm.nn.weight_norm import normed

DILATIONS = (1, 3, 5)
SLOPE = 0.1
MAX_LOG_MAGNITUDE = math.log(100.0)


class ResBlock(nn.Module):
    """Dilated convolutions behind Snakes, each pair beside a shortcut.

    Args:
        channels: C.
        kernel: taps.
        dilations: of the first convolution of each pair; the second has none.
    """

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...] = DILATIONS) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_conv(channels, kernel, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_conv(channels, kernel, 1) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        """(B, C, N) and (B, 1, N) bool or None -> (B, C, N)."""
        for first, before, second, between in zip(
            self.convs1, self.activations1, self.convs2, self.activations2, strict=True
        ):
            x = x + masked(second(between(masked(first(before(x)), real))), real)
        return x


class HiFT(Generator):
    """The released vocoder: 22.05 kHz, 80 mel bins, ×8 ×8 ×4.

    Args:
        num_mels: mel bins.
        channels: behind the first convolution; halved at every rise.
        f0_channels: width of the pitch predictor.
        upsample_rates: of the rises; with `stft_hop` they make the hop.
        upsample_kernels: of the rises.
        resblock_kernels: blocks that are averaged behind every rise.
        source_kernels: block that the excitation passes before every rise it joins.
        stft_size: of the inverse Fourier transform.
        stft_hop: of the same.
        harmonics: overtones of the excitation.
        sample_rate_hz: of the waveform.
        limit: samples are clipped here.
    """

    def __init__(
        self,
        num_mels: int = 80,
        channels: int = 512,
        f0_channels: int = 512,
        upsample_rates: tuple[int, ...] = (8, 8),
        upsample_kernels: tuple[int, ...] = (16, 16),
        resblock_kernels: tuple[int, ...] = (3, 7, 11),
        source_kernels: tuple[int, ...] = (7, 11),
        stft_size: int = 16,
        stft_hop: int = 4,
        harmonics: int = 8,
        sample_rate_hz: int = 22_050,
        limit: float = 0.99,
    ) -> None:
        super().__init__(num_mels, math.prod(upsample_rates) * stft_hop, sample_rate_hz)
        _check(upsample_rates, upsample_kernels, source_kernels, resblock_kernels)
        self.rates, self.kernels, self.limit = upsample_rates, upsample_kernels, limit
        self.resblock_kernels, self.source_kernels = resblock_kernels, source_kernels
        self.stft = ShortSTFT(stft_size, stft_hop)
        self.f0_predictor = F0Predictor(num_mels, f0_channels)
        self.m_source = HarmonicSource(sample_rate_hz, self.hop_samples, harmonics)
        widths = [channels // 2**i for i in range(len(upsample_rates) + 1)]
        self.conv_pre = normed(nn.Conv1d(num_mels, channels, 7, padding=3))
        self.ups = nn.ModuleList(
            normed(nn.ConvTranspose1d(wide, narrow, kernel, rate, padding=(kernel - rate) // 2))
            for wide, narrow, kernel, rate in zip(widths, widths[1:], upsample_kernels, upsample_rates, strict=False)
        )
        self.source_downs = nn.ModuleList(
            _down(2 * self.stft.num_bins, width, math.prod(upsample_rates[i + 1 :]))
            for i, width in enumerate(widths[1:])
        )
        self.source_resblocks = nn.ModuleList(
            ResBlock(width, kernel) for width, kernel in zip(widths[1:], source_kernels, strict=True)
        )
        self.resblocks = nn.ModuleList(ResBlock(width, kernel) for width in widths[1:] for kernel in resblock_kernels)
        self.conv_post = normed(nn.Conv1d(widths[-1], 2 * self.stft.num_bins, 7, padding=3))

    def forward(
        self, mel: Tensor, mel_lens: Tensor | None = None, seeds: Tensor | None = None, f0: Tensor | None = None
    ) -> Spoken:
        """Waveform and pitch of (B, M, F) log-mels; see `Generator`."""
        heard = self.pitch(mel, mel_lens)
        source, _ = self.excite(heard if f0 is None else f0, seeds)
        return Spoken(self.filter(mel, source, mel_lens), heard)

    def pitch(self, mel: Tensor, mel_lens: Tensor | None = None) -> Tensor:
        """(B, M, F) log-mel -> (B, F) Hz, in float32: half precision would bend the phase."""
        with torch.autocast(mel.device.type, enabled=False):
            return self.f0_predictor(mel.float(), self._real(mel_lens, mel.shape[2]))

    def excite(
        self, f0: Tensor, seeds: Tensor | None = None, start_frame: int = 0, phase: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, F) Hz -> (B, F * hop) excitation and (B,) the phase behind it; see `HarmonicSource`."""
        if seeds is None:
            seeds = torch.zeros(f0.shape[0], dtype=torch.long, device=f0.device)
        with torch.autocast(f0.device.type, enabled=False):
            return self.m_source(f0, seeds, start_frame, phase)

    def filter(self, mel: Tensor, source: Tensor, mel_lens: Tensor | None = None) -> Tensor:
        """(B, M, F) log-mel and (B, F * hop) excitation -> (B, F * hop) waveform, zeros behind each recording's end."""
        lens = None if mel_lens is None else mel_lens * self.hop_samples
        excitation = self.stft.analyse(source, lens)
        spectra = None if lens is None else lens // self.stft.hop + 1
        excitation = masked(excitation, self._real(spectra, excitation.shape[2]))
        real = self._real(mel_lens, mel.shape[2])
        x = masked(self.conv_pre(masked(mel, real)), real)
        rise = 1
        for i, rate in enumerate(self.rates):
            rise *= rate
            at_end = i == len(self.rates) - 1  # where the frame of the last edge is added, and the first mirrored
            x = self.ups[i](F.leaky_relu(x, SLOPE))
            x = F.pad(x, (1, 0), "reflect") if at_end else x
            real = self._real(None if mel_lens is None else mel_lens * rise + at_end, x.shape[2])
            joined = self.source_resblocks[i](masked(self.source_downs[i](excitation), real), real)
            x = self._averaged(i, masked(x, real) + joined, real)
        x = self.conv_post(F.leaky_relu(x)).float()
        log_magnitude, phase = x.chunk(2, dim=1)
        # Clipped before the exponential: behind it, an infinity would have no gradient.
        audio = self.stft.synthesise(log_magnitude.clamp(max=MAX_LOG_MAGNITUDE), phase.sin(), lens)
        return audio.clamp(-self.limit, self.limit)

    def stream(self, batch_size: int = 1, seed: int = 0) -> HiFTStream:
        """Recordings spoken as their mels come, equal to those spoken whole."""
        return HiFTStream(self, batch_size, seed)

    @property
    def reach_frames(self) -> int:
        """Frames on each side of a sample in which mel or excitation can change it."""
        hop, size = self.stft.hop, self.stft.n_fft
        samples = 3 * hop + hop + size // 2  # the last convolution, the mirrored frame, the inverse transform
        fall, ways = hop, []  # samples between positions; what comes together on the ways from mel and excitation
        for rate, kernel, source in reversed(list(zip(self.rates, self.kernels, self.source_kernels, strict=True))):
            samples += _block_reach(max(self.resblock_kernels)) * fall
            ways.append(samples + _block_reach(source) * fall + 3 * fall // 2 + size // 2)
            samples += (kernel - 1 - (kernel - rate) // 2) * fall
            fall *= rate
        ways.append(samples + 3 * fall)
        return math.ceil(max(ways) / self.hop_samples)

    @property
    def past_frames(self) -> int:
        """Frames before a sample that it depends on."""
        return self.reach_frames

    @property
    def excitation_width(self) -> int:
        """Numbers of the excitation for each frame."""
        return self.hop_samples

    @property
    def lookahead_frames(self) -> int:
        """Frames behind a sample that it depends on: the filter's reach, and the pitch predictor's in front of it."""
        return self.reach_frames + self.f0_predictor.reach

    def _averaged(self, rise: int, x: Tensor, real: Tensor | None) -> Tensor:
        count = len(self.resblock_kernels)
        blocks = self.resblocks[rise * count : (rise + 1) * count]
        return torch.stack([block(x, real) for block in blocks]).mean(0)

    def _real(self, lens: Tensor | None, width: int) -> Tensor | None:
        return None if lens is None else length_mask(lens, width)[:, None]


def _conv(channels: int, kernel: int, dilation: int) -> nn.Module:
    return normed(nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2))


def _down(bins: int, width: int, rate: int) -> nn.Module:
    """From the excitation's transform to a rise's rate; not normalised, as released."""
    return nn.Conv1d(bins, width, 1) if rate == 1 else nn.Conv1d(bins, width, 2 * rate, rate, padding=rate // 2)


def _block_reach(kernel: int) -> int:
    """Positions on each side that a `ResBlock`'s output depends on."""
    return (kernel - 1) // 2 * (sum(DILATIONS) + len(DILATIONS))


def _check(
    rates: tuple[int, ...], kernels: tuple[int, ...], source_kernels: tuple[int, ...], resblocks: tuple[int, ...]
) -> None:
    if not len(rates) == len(kernels) == len(source_kernels) or not resblocks:
        raise ValueError(
            f"HiFT needs one upsample kernel and one source kernel per upsample rate, and at least one resblock kernel; got "
            f"rates {rates}, kernels {kernels}, source kernels {source_kernels}, resblock kernels {resblocks}"
        )
    odd = [k for k in (*source_kernels, *resblocks) if k % 2 == 0]
    uneven = [
        (rate, kernel) for rate, kernel in zip(rates, kernels, strict=True) if kernel < rate or (kernel - rate) % 2
    ]
    if odd or uneven:
        raise ValueError(
            f"resblock kernels are odd, and an upsample kernel is its rate or an even number of samples more; got kernels {odd} "
            f"and (rate, kernel) pairs {uneven}"
        )
