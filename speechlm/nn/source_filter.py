"""A small vocoder for a CPU: pulses and noise, each through a filter that a network reads from the mel.

As in Neural Source-Filter models (https://arxiv.org/abs/1810.11946) and DDSP (https://arxiv.org/abs/2001.04643): the network
works at the rate of the mel, and only transforms at the rate of samples. What HiFT has to learn of pitch and phase is given here,
so that minutes of one core are enough for a voice; a little of what HiFT can learn, such as rough voices, is out of reach.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.nn.generator import Generator, Spoken
from speechlm.nn.hift_stream import HiFTStream
from speechlm.nn.masks import length_mask
from speechlm.nn.pulse_source import PitchReader, PulseSource

KERNEL = 7
MAX_LOG_GAIN = math.log(1000.0)
ACROSS = 2  # frames on each side whose filtered windows reach into a frame's samples


class SourceFilter(Generator):
    """Mel to filters of pulses and of noise.

    A filter of the pulses has least phase (all of its energy as early as it can be, as a vocal tract has) turned by what is
    learnt; one of the noise has none. Convolutions see the past, the first one three frames ahead as well.

    Args:
        num_mels: mel bins M.
        width: D of the network.
        layers: how many.
        pitch_width: of the pitch reader.
        hop_samples: samples of a mel frame; windows are twice as long, transforms four times.
        sample_rate_hz: of the waveform.
        limit: samples are clipped here.
    """

    window: Tensor  # (2 hop,)
    fold: Tensor  # (4 hop,) what a cepstrum is multiplied with

    def __init__(
        self,
        num_mels: int = 80,
        width: int = 256,
        layers: int = 6,
        pitch_width: int = 128,
        hop_samples: int = 256,
        sample_rate_hz: int = 16_000,
        limit: float = 0.99,
    ) -> None:
        super().__init__(num_mels, hop_samples, sample_rate_hz)
        if hop_samples % 2:
            raise ValueError(f"a window is centred on its frame, so that the hop must be even, got {hop_samples}")
        self.limit, self.num_bins = limit, 2 * hop_samples + 1
        self.f0_predictor = PitchReader(num_mels, pitch_width)
        self.source = PulseSource(sample_rate_hz, hop_samples)
        self.inward = nn.Conv1d(num_mels, width, KERNEL, padding=KERNEL // 2)
        self.layers = nn.ModuleList(FilterLayer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.outward = nn.Linear(width, 3 * self.num_bins)
        nn.init.normal_(self.outward.weight, std=0.01)
        nn.init.zeros_(self.outward.bias)
        self.register_buffer("window", torch.hann_window(2 * hop_samples), persistent=False)
        # Its cepstrum folded to positive times, a filter has the least phase: https://ccrma.stanford.edu/~jos/filters/
        fold = torch.zeros(4 * hop_samples)
        fold[0], fold[1 : 2 * hop_samples], fold[2 * hop_samples] = 1.0, 2.0, 1.0
        self.register_buffer("fold", fold, persistent=False)

    def forward(
        self, mel: Tensor, mel_lens: Tensor | None = None, seeds: Tensor | None = None, f0: Tensor | None = None
    ) -> Spoken:
        """Waveform and pitch of (B, M, F) log-mels; see `Generator`."""
        hertz, voiced = self._read(mel, mel_lens)
        heard = hertz * (voiced > 0.5)
        source, _ = self.excite(heard if f0 is None else f0, seeds)
        # Whether there is a voice is learnt by what that changes; as a factor it would bend the pitch of every unsure frame.
        return Spoken(self.filter(mel, source, mel_lens), heard + (voiced - voiced.detach()) * hertz.detach())

    def pitch(self, mel: Tensor, mel_lens: Tensor | None = None) -> Tensor:
        """(B, M, F) log-mel -> (B, F) Hz, 0 where there is none."""
        hertz, voiced = self._read(mel, mel_lens)
        return hertz * (voiced > 0.5)

    def excite(
        self, f0: Tensor, seeds: Tensor | None = None, start_frame: int = 0, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, F) Hz -> (B, F * 2 hop), for each frame pulses and noise, and the state behind it; see `PulseSource`."""
        seeds = torch.zeros(f0.shape[0], dtype=torch.long, device=f0.device) if seeds is None else seeds
        source, state = self.source(f0, seeds, start_frame, state)
        return source.flatten(1), state

    def filter(self, mel: Tensor, source: Tensor, mel_lens: Tensor | None = None) -> Tensor:
        """(B, M, F) log-mel and (B, F * 2 hop) excitation -> (B, F * hop) waveform, zeros behind each recording's end."""
        real = None if mel_lens is None else length_mask(mel_lens, mel.shape[2])
        voice, breath, turn = self._filters(mel, real)
        source = source.unflatten(1, (mel.shape[2], -1))
        source = source if real is None else source * real[:, :, None]
        pulses, noise = (self._spectra(part.flatten(1)) for part in source.chunk(2, dim=2))
        with torch.autocast(mel.device.type, enabled=False):
            filtered = pulses * self._least_phase(voice) * torch.polar(torch.ones_like(turn), turn)
            frames = torch.fft.irfft(filtered + noise * breath.exp(), dim=2)
            audio = self._overlap(frames if real is None else frames * real[:, :, None])
        audio = audio if mel_lens is None else audio * length_mask(mel_lens * self.hop_samples, audio.shape[1])
        return audio.clamp(-self.limit, self.limit)

    def stream(self, batch_size: int = 1, seed: int = 0) -> HiFTStream:
        """Recordings spoken as their mels come, equal to those spoken whole."""
        return HiFTStream(self, batch_size, seed)

    @property
    def excitation_width(self) -> int:
        """Numbers of the excitation for each frame."""
        return 2 * self.hop_samples

    @property
    def reach_frames(self) -> int:
        """Frames behind a sample in which mel or excitation can change it."""
        return KERNEL // 2 + ACROSS

    @property
    def past_frames(self) -> int:
        """Frames before a sample in which mel or excitation can change it."""
        return KERNEL // 2 + len(self.layers) * (KERNEL - 1) + ACROSS

    @property
    def lookahead_frames(self) -> int:
        """Frames behind a sample that it depends on: the filter's, and the pitch reader's in front of it."""
        return self.reach_frames + self.f0_predictor.reach

    def _read(self, mel: Tensor, mel_lens: Tensor | None) -> tuple[Tensor, Tensor]:
        real = None if mel_lens is None else length_mask(mel_lens, mel.shape[2])[:, None]
        with torch.autocast(mel.device.type, enabled=False):
            return self.f0_predictor(mel.float(), real)

    def _filters(self, mel: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, F, bins) thrice: logarithms of the gains of pulses and of noise, and a phase."""
        kept = None if real is None else real[:, None]
        x = self.inward(mel if kept is None else mel * kept)
        for layer in self.layers:
            x = layer(x if kept is None else x * kept)
        voice, breath, turn = self.outward(self.norm(x.transpose(1, 2))).float().chunk(3, dim=2)
        # Clipped before the exponential: behind it, an infinity would have no gradient.
        return voice.clamp(max=MAX_LOG_GAIN), (breath - 2.0).clamp(max=MAX_LOG_GAIN), turn

    def _spectra(self, signal: Tensor) -> Tensor:
        """(B, F * hop) -> (B, F, bins) of windows around each frame, with room on both sides for what a filter adds."""
        hop = self.hop_samples
        frames = F.pad(signal, (hop // 2, hop // 2)).unfold(1, 2 * hop, hop) * self.window
        return torch.fft.rfft(F.pad(frames, (hop, hop)), dim=2)

    def _least_phase(self, log_gain: Tensor) -> Tensor:
        """(B, F, bins) -> complex gains whose impulse response comes as early as it can."""
        cepstrum = torch.fft.irfft(log_gain.to(torch.complex64), dim=2) * self.fold
        return torch.fft.rfft(cepstrum, dim=2).exp()

    def _overlap(self, frames: Tensor) -> Tensor:
        """(B, F, 4 hop) -> (B, F * hop): windows added where they overlap, without what sticks out."""
        hop, count = self.hop_samples, frames.shape[1]
        width = (count + 3) * hop
        added = F.fold(frames.transpose(1, 2), (1, width), (1, 4 * hop), stride=(1, hop))[:, 0, 0]
        edge = 3 * hop // 2
        return added[:, edge : edge + count * hop]


class FilterLayer(nn.Module):
    """ConvNeXt's layer (https://arxiv.org/abs/2201.03545) over the past: a filter by channel, then a network by frame.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, KERNEL, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, F) -> (B, D, F)."""
        h = self.conv(F.pad(x, (KERNEL - 1, 0))).transpose(1, 2)
        h = self.down(F.gelu(self.up(self.norm(h)))) * self.scale
        return x + h.transpose(1, 2)
