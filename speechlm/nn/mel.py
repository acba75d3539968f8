"""The log-mel that decoders make and vocoders speak: HiFi-GAN's, as CosyVoice and GLM-4-Voice use it at 22.05 kHz."""

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from speechlm.nn.masks import length_mask

FLOOR = 1e-5  # of the magnitude in a bin, so that its logarithm is at least -11.5


class MelSpectrogram(nn.Module):
    """Natural logarithm of mel magnitudes, one frame for every whole hop, each recording as if it were alone.

    A frame looks at `n_fft` samples around the middle of its hop; both edges of a recording are mirrored. Works in float32.

    Args:
        sample_rate_hz: of the waveform.
        num_mels: bins M (Slaney's scale and norm).
        n_fft: samples under the Hann window.
        hop_samples: samples between frames.
        min_hz: lower end of the bins.
        max_hz: upper end; None is half the sample rate.
    """

    filters: Tensor  # (n_fft / 2 + 1, M)
    window: Tensor  # (n_fft,)

    def __init__(
        self,
        sample_rate_hz: int = 22_050,
        num_mels: int = 80,
        n_fft: int = 1024,
        hop_samples: int = 256,
        min_hz: float = 0.0,
        max_hz: float | None = 8000.0,
    ) -> None:
        super().__init__()
        highest = sample_rate_hz / 2
        if not 0 <= min_hz < (max_hz or highest) <= highest or (n_fft - hop_samples) % 2 or n_fft < hop_samples:
            raise ValueError(
                f"mel bins lie between 0 and half the sample rate, and the window is an even number of samples longer than the "
                f"hop; got {min_hz} to {max_hz} Hz at {sample_rate_hz} Hz, window {n_fft}, hop {hop_samples}"
            )
        self.sample_rate_hz, self.num_mels, self.n_fft, self.hop_samples = sample_rate_hz, num_mels, n_fft, hop_samples
        filters = mel_filter_bank(
            num_frequency_bins=1 + n_fft // 2,
            num_mel_filters=num_mels,
            min_frequency=min_hz,
            max_frequency=max_hz or highest,
            sampling_rate=sample_rate_hz,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, audio: Tensor, audio_lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, N) waveform and (B,) samples, all of N where None -> (B, M, F) log-mel, 0 behind each end, and (B,) frames.

        F is N / hop rounded down. N is more than half of what the window is longer than the hop, 384 samples as released.
        """
        if audio_lens is None:
            audio_lens = torch.full((audio.shape[0],), audio.shape[1], device=audio.device)
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(
                self._mirrored(audio.float(), audio_lens),
                self.n_fft,
                self.hop_samples,
                window=self.window,
                center=False,
                return_complex=True,
            )
            magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
            mel = torch.einsum("bkf,km->bmf", magnitude, self.filters).clamp(min=FLOOR).log()
        mel_lens = audio_lens // self.hop_samples
        return mel * length_mask(mel_lens, mel.shape[2])[:, None], mel_lens

    def _mirrored(self, audio: Tensor, lens: Tensor) -> Tensor:
        """(B, N) -> (B, edge + N + edge): each recording continued by its mirror image at its own ends."""
        edge = (self.n_fft - self.hop_samples) // 2
        place = torch.arange(-edge, audio.shape[1] + edge, device=audio.device).abs()[None]
        last = lens[:, None] - 1
        return audio.gather(1, (last - (last - place).abs()).clamp(min=0))
