"""What a voice's filter is given: pulses at the pitch, and noise; and the pitch itself, read from the mel.

Pulses have every harmonic up to half the sample rate at the same strength, and their phase is summed in float64, so that
minutes of a recording, or a stream of it, have the phase of the whole.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.nn.hashed_noise import hashed_normal

LAYERS = 5
LOUDNESS = 0.1  # root mean square of pulses and noise, so that filters begin near 1


class PitchReader(nn.Module):
    """Fundamental frequency from log-mel: which of many pitches, and whether there is one.

    A frequency is the mean of pitches by their probability, on a logarithmic scale, which is learnt far sooner than a number in
    hertz from a linear layer.

    Args:
        num_mels: M.
        width: channels between.
        lowest_hz: lowest pitch.
        highest_hz: highest pitch.
        pitches: how many, evenly spread in octaves.
    """

    reach = LAYERS  # frames on each side that a value depends on
    octaves: Tensor  # (P,) logarithms of the pitches

    def __init__(
        self, num_mels: int, width: int = 128, lowest_hz: float = 50.0, highest_hz: float = 600.0, pitches: int = 96
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(width if i else num_mels, width, 3, padding=1) for i in range(LAYERS))
        self.out = nn.Conv1d(width, 1 + pitches, 1)
        octaves = torch.linspace(math.log(lowest_hz), math.log(highest_hz), pitches)
        self.register_buffer("octaves", octaves, persistent=False)

    def forward(self, mel: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, M, F) log-mel and (B, 1, F) bool -> (B, F) Hz, and (B, F) probability that there is a pitch."""
        x = mel if real is None else mel * real
        for conv in self.convs:
            x = F.elu(conv(x))
            x = x if real is None else x * real
        x = self.out(x)
        share = x[:, 1:].softmax(1)
        return torch.einsum("bpf,p->bf", share, self.octaves).exp(), x[:, 0].sigmoid()


class PulseSource(nn.Module):
    """(B, F) pitches to pulses and noise.

    The pitch glides from frame to frame, half a frame late; where it begins or ends it is held.

    Args:
        sample_rate_hz: of the waveform.
        hop_samples: samples of a frame.
    """

    def __init__(self, sample_rate_hz: int, hop_samples: int) -> None:
        super().__init__()
        self.sample_rate_hz, self.hop_samples = sample_rate_hz, hop_samples

    @torch.no_grad()
    def forward(
        self, f0: Tensor, seeds: Tensor, start_frame: int = 0, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, F) Hz, 0 where there is none, and (B,) int64 seeds -> (B, F, 2 * hop) pulses and noise of each frame, state.

        Args:
            f0: pitch by frame, F at least 1.
            seeds: of the noise.
            start_frame: place of the first frame in its recording.
            state: (B, 2) float64, cycles behind the frames before and the last one's pitch; None at the beginning.
        """
        hop = self.hop_samples
        f0 = f0.detach().double()
        state = f0.new_zeros(len(f0), 2) if state is None else state
        glide = self._glide(f0, state[:, 1])
        cycles = state[:, :1] + (glide / self.sample_rate_hz).cumsum(1)
        voiced = (f0 > 0).repeat_interleave(hop, dim=1)
        pulses = (self._pulses(cycles % 1.0, glide) * voiced).unflatten(1, (-1, hop))
        noise = hashed_normal(seeds, 1, cycles.shape[1], start_frame * hop)[:, 0].unflatten(1, (-1, hop)) * LOUDNESS
        return torch.cat([pulses.float(), noise], dim=2), torch.stack([cycles[:, -1] % 1.0, f0[:, -1]], dim=1)

    def _glide(self, f0: Tensor, before: Tensor) -> Tensor:
        """(B, F) Hz and the (B,) before them -> (B, F * hop) Hz by sample."""
        left = torch.cat([before[:, None], f0[:, :-1]], dim=1)
        left, right = torch.where(left > 0, left, f0), torch.where(f0 > 0, f0, left)
        share = torch.arange(1, self.hop_samples + 1, device=f0.device, dtype=f0.dtype) / self.hop_samples
        return (left[:, :, None] + (right - left)[:, :, None] * share).flatten(1)

    def _pulses(self, cycles: Tensor, hertz: Tensor) -> Tensor:
        """A sum of K cosines, K the harmonics under half the sample rate, in closed form (Dirichlet's kernel)."""
        harmonics = (self.sample_rate_hz / 2 / hertz.clamp(min=1.0)).floor().clamp(min=1.0)
        half = math.pi * (cycles - cycles.round())
        low = half.sin()
        near = low.abs() < 1e-7
        kernel = ((2 * harmonics + 1) * half).sin() / torch.where(near, torch.ones_like(low), low)
        total = 0.5 * (torch.where(near, 2 * harmonics + 1, kernel) - 1.0)
        return total * (LOUDNESS * (2.0 / harmonics).sqrt())
