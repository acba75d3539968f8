"""Whisper's log-mel features, in batch, on the device, and independent of what else is in the batch."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from speechlm.nn.masks import length_mask

SAMPLE_RATE_HZ = 16_000
N_FFT = 400
HOP = 160
DYNAMIC_RANGE = 8.0  # in log10: everything 80 dB under the maximum is raised to that floor

Floor = Literal["clip", "running"]


class LogMel(nn.Module):
    """Log-mel spectrogram as Whisper was trained on, equal to transformers' `WhisperFeatureExtractor` (16 kHz, 100 frames/s).

    Each recording is handled as if it were alone and padded with zeros to a whole number of `pad_to` samples: its reflected
    right edge and its maximum are its own, so its features are the same in any batch.

    Args:
        num_mel_bins: 80, or 128 for large-v3.
        pad_to: recordings are seen padded to a multiple of this many samples (one speech token).
        floor: what the dynamic range is counted from. "clip" is Whisper's: the maximum of the whole recording, so a loud sound
            at its end changes the features of its beginning. "running" takes the maximum so far: causal, for streaming.
    """

    filters: Tensor  # (201, M)
    window: Tensor  # (400,)

    def __init__(self, num_mel_bins: int, pad_to: int = 1280, floor: Floor = "clip") -> None:
        super().__init__()
        if pad_to % HOP:
            raise ValueError(f"pad_to must be a multiple of {HOP} samples (one mel frame), got {pad_to}")
        if floor not in ("clip", "running"):
            raise ValueError(f"floor must be 'clip' or 'running', got {floor!r}")
        self.pad_to = pad_to
        self.floor = floor
        filters = mel_filter_bank(
            num_frequency_bins=1 + N_FFT // 2,
            num_mel_filters=num_mel_bins,
            min_frequency=0.0,
            max_frequency=8000.0,
            sampling_rate=SAMPLE_RATE_HZ,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)  # (201, M)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)

    def forward(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel of a batch.

        Args:
            audio: (B, N) waveform.
            audio_lens: (B,) samples.

        Returns:
            (B, M, F) features, zero behind each recording's last whole token, and (B,) frames that have audio in them.
        """
        padded_lens = (audio_lens + self.pad_to - 1) // self.pad_to * self.pad_to
        extended = self._extended(audio.float(), audio_lens, padded_lens)
        mel = self.log_power(extended[:, :-HOP])  # Whisper drops the last frame
        real = length_mask(padded_lens // HOP, mel.shape[-1])[:, None]
        mel = self.floored(mel, self.loudest(mel.masked_fill(~real, -torch.inf)))
        return mel.masked_fill(~real, 0.0), -(-audio_lens // HOP)

    def log_power(self, audio: Tensor) -> Tensor:
        """(B, 400 + n * 160) samples -> (B, M, n + 1) log10 of the power in each band, one frame per whole window."""
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(audio, N_FFT, HOP, window=self.window, center=False, return_complex=True)
            power = spectrum.abs().square()
            return torch.einsum("bkf,km->bmf", power, self.filters).clamp(min=1e-10).log10()

    @staticmethod
    def floored(mel: Tensor, loudest: Tensor) -> Tensor:
        """(B, M, F) log power, and what the dynamic range hangs from -> features."""
        return (torch.maximum(mel, loudest - DYNAMIC_RANGE) + 4.0) / 4.0

    def loudest(self, mel: Tensor) -> Tensor:
        """(B, M, F) -> (B, 1, 1) or (B, 1, F): what the dynamic range hangs from."""
        loudest = mel.amax(dim=1, keepdim=True)
        return loudest.amax(dim=2, keepdim=True) if self.floor == "clip" else loudest.cummax(dim=2).values

    def _extended(self, audio: Tensor, audio_lens: Tensor, padded_lens: Tensor) -> Tensor:
        """(B, N) -> (B, N' + 400): zeros behind the end, both edges of each recording mirrored as a centred STFT does."""
        edge = N_FFT // 2
        # A recording of no samples has no frames, but an edge to mirror.
        width = max(int(padded_lens.max()), self.pad_to)
        audio = F.pad(audio, (0, max(0, width - audio.shape[1])))[:, :width]
        audio = audio * length_mask(audio_lens, width)
        # The right edge, without the last sample.
        mirrored = padded_lens[:, None] - 2 - torch.arange(edge, device=audio.device)
        tail = audio.gather(1, mirrored.clamp(min=0))
        extended = F.pad(audio, (edge, edge))
        extended[:, :edge] = audio[:, 1 : edge + 1].flip(1)
        where = edge + padded_lens[:, None] + torch.arange(edge, device=audio.device)
        return extended.scatter(1, where, tail)
