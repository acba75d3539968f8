"""A short-time Fourier transform and its inverse for the inside of a vocoder: a batch's recordings end where they end.

torch's own pair handles every row as if it filled the batch: a row's edge is mirrored at the batch's end, and its last samples
are divided by windows that it does not have. Here each row is what it would be alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.nn.masks import length_mask


class ShortSTFT(nn.Module):
    """Frames of `n_fft` samples, one every `hop` samples and centred there, under a Hann window. Works in float32.

    Args:
        n_fft: window, in samples.
        hop: samples between frames.
    """

    window: Tensor  # (n_fft,)

    def __init__(self, n_fft: int = 16, hop: int = 4) -> None:
        super().__init__()
        if n_fft % (2 * hop):
            raise ValueError(f"n_fft must be a multiple of two hops, got n_fft {n_fft} and hop {hop}")
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    @property
    def num_bins(self) -> int:
        """Frequencies from 0 to half the sample rate."""
        return self.n_fft // 2 + 1

    def analyse(self, audio: Tensor, lens: Tensor | None = None) -> Tensor:
        """(B, N) and (B,) samples -> (B, 2 * bins, N / hop + 1) real parts, then imaginary parts."""
        edge = self.n_fft // 2
        audio = audio.float()
        place = torch.arange(-edge, audio.shape[1] + edge, device=audio.device).abs()[None]
        end = audio.new_full((1, 1), audio.shape[1], dtype=torch.long) if lens is None else lens[:, None]
        mirrored = torch.where(place < end, place, 2 * (end - 1) - place).clamp(min=0)
        with torch.autocast(audio.device.type, enabled=False):
            frames = audio.gather(1, mirrored.expand(audio.shape[0], -1)).unfold(1, self.n_fft, self.hop)
            spectrum = torch.fft.rfft(frames * self.window).transpose(1, 2)
        return torch.cat([spectrum.real, spectrum.imag], dim=1)

    def synthesise(self, log_magnitude: Tensor, phase: Tensor, lens: Tensor | None = None) -> Tensor:
        """(B, bins, P) twice -> (B, (P - 1) * hop) samples, zeros behind each of (B,) `lens` samples."""
        with torch.autocast(log_magnitude.device.type, enabled=False):
            spectrum = torch.polar(log_magnitude.float().exp(), phase.float())
            frames = torch.fft.irfft(spectrum.transpose(1, 2), self.n_fft) * self.window
            real = self._real(frames, lens)
            frames = frames * real
            weight = self.window.square() * real
            audio = self._overlap(frames) / self._overlap(weight.expand_as(frames)[: len(real)]).clamp(min=1e-11)
        return audio if lens is None else audio * length_mask(lens, audio.shape[1])

    def _real(self, frames: Tensor, lens: Tensor | None) -> Tensor:
        """(B or 1, P, 1) 1 where a frame belongs to its recording."""
        count = torch.arange(frames.shape[1], device=frames.device)[None, :, None]
        if lens is None:
            return torch.ones_like(count, dtype=frames.dtype)
        return (count <= lens[:, None, None] // self.hop).to(frames.dtype)

    def _overlap(self, frames: Tensor) -> Tensor:
        """(B, P, n_fft) -> (B, (P - 1) * hop): frames added where they overlap, without half a window at each end."""
        width = (frames.shape[1] - 1) * self.hop + self.n_fft
        added = F.fold(frames.transpose(1, 2), (1, width), (1, self.n_fft), stride=(1, self.hop))
        edge = self.n_fft // 2
        return added[:, 0, 0, edge : width - edge]
