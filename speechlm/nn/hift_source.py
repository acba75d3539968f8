"""The neural source filter's two halves before the filter: pitch heard in the mel, and the excitation made of it.

https://arxiv.org/abs/1810.11946, in the form of HiFTNet (https://arxiv.org/abs/2309.09493) and CosyVoice.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.nn.hashed_noise import hashed_normal, hashed_uniform
from speechlm.nn.weight_norm import normed

PITCH_LAYERS = 5


class F0Predictor(nn.Module):
    """Fundamental frequency from log-mel: five convolutions and a linear layer. Parts are named as in the released weights.

    Args:
        num_mels: M.
        width: channels between.
    """

    reach = PITCH_LAYERS  # frames on each side that a value depends on

    def __init__(self, num_mels: int, width: int = 512) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(PITCH_LAYERS):
            layers += [normed(nn.Conv1d(width if i else num_mels, width, 3, padding=1)), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, 1)

    def forward(self, mel: Tensor, real: Tensor | None = None) -> Tensor:
        """(B, M, F) log-mel and (B, 1, F) bool, True where real -> (B, F) Hz; under 10 Hz is unvoiced."""
        x = mel if real is None else mel * real
        for layer in self.condnet:
            x = layer(x)
            if real is not None and isinstance(layer, nn.ELU):
                x = x * real
        return self.classifier(x.transpose(1, 2)).squeeze(-1).abs()


class HarmonicSource(nn.Module):
    """Excitation of the voice: a sine and its harmonics where there is pitch, noise where there is none.

    All randomness is a function of (seed, sample), and the phase can be handed on, so that a recording made in pieces is the
    recording made at once.

    Args:
        sample_rate_hz: of the waveform.
        hop_samples: samples that one value of the pitch holds for.
        harmonics: overtones beside the fundamental.
        amplitude: of each sine; noise in unvoiced frames has a third of it.
        noise: standard deviation of the noise in voiced frames.
        voiced_above_hz: pitch up to here is none.
    """

    def __init__(
        self,
        sample_rate_hz: int,
        hop_samples: int,
        harmonics: int = 8,
        amplitude: float = 0.1,
        noise: float = 0.003,
        voiced_above_hz: float = 10.0,
    ) -> None:
        super().__init__()
        self.sample_rate_hz, self.hop_samples, self.harmonics = sample_rate_hz, hop_samples, harmonics
        self.amplitude, self.noise, self.voiced_above_hz = amplitude, noise, voiced_above_hz
        self.l_linear = nn.Linear(harmonics + 1, 1)

    def forward(
        self, f0: Tensor, seeds: Tensor, start_frame: int = 0, phase: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, F) Hz and (B,) int64 seeds -> (B, F * hop) excitation, and (B,) float64 the phase behind it.

        Args:
            f0: pitch by frame.
            seeds: of the noise and of the overtones' phases.
            start_frame: place of the first frame in its recording.
            phase: (B,) float64 cycles, what the piece before left off with; None at the beginning.
        """
        with torch.no_grad():
            waves, phase = self._waves(f0.detach().float(), seeds, start_frame, phase)
        return torch.tanh(self.l_linear(waves.transpose(1, 2))).squeeze(-1), phase

    def _waves(self, f0: Tensor, seeds: Tensor, start_frame: int, phase: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, H, F * hop) the fundamental and its overtones with their noise, and the phase behind them."""
        start = start_frame * self.hop_samples
        cycles, phase = self._cycles(f0, phase)
        overtone = torch.arange(1, self.harmonics + 2, device=f0.device)[None, :, None]
        offset = (2.0 * math.pi) * hashed_uniform(2 * seeds, self.harmonics + 1)
        offset[:, 0] = 0.0
        sines = self.amplitude * torch.sin(2.0 * math.pi * (overtone * cycles[:, None] % 1.0) + offset)
        voiced = (f0 > self.voiced_above_hz).float().repeat_interleave(self.hop_samples, dim=1)[:, None]
        loudness = voiced * self.noise + (1.0 - voiced) * (self.amplitude / 3.0)
        noise = hashed_normal(2 * seeds + 1, self.harmonics + 1, cycles.shape[1], start)
        return sines * voiced + loudness * noise, phase

    def _cycles(self, f0: Tensor, phase: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, F * hop) cycles of the fundamental since the beginning, whole ones left out, and those behind the last sample.

        Summed over frames in float64: in float32 over samples, as released, the phase of a five-minute recording is off by more
        than a hundredth of a cycle, and a stream would hear it.
        """
        step = f0.double() / self.sample_rate_hz  # cycles per sample
        after = step.cumsum(1) * self.hop_samples + (0.0 if phase is None else phase[:, None])
        before = F.pad(after, (1, 0))[:, :-1]
        if phase is not None:
            before[:, 0] = phase
        inside = torch.arange(1, self.hop_samples + 1, device=f0.device)
        cycles = (before % 1.0)[:, :, None] + step[:, :, None] * inside
        end = after[:, -1] % 1.0 if f0.shape[1] else phase
        assert end is not None, "an excitation has at least one frame, or goes on with a phase"
        return cycles.flatten(1).float(), end
