"""The log-mel of decoders and vocoders."""

import pytest
import torch
import torch.nn.functional as F

from speechlm.nn.mel import MelSpectrogram


def test_it_is_the_published_formula():
    """Reflect 384 samples on both sides, no centring, sqrt(|S|² + 1e-9), mel, log with a floor: written out with torch alone."""
    audio = torch.randn(2, 22_050, generator=torch.Generator().manual_seed(0)) * 0.1
    mel, lens = MelSpectrogram()(audio)
    padded = F.pad(audio[:, None], (384, 384), "reflect")[:, 0]
    spectrum = torch.stft(padded, 1024, 256, 1024, torch.hann_window(1024), center=False, return_complex=True)
    magnitude = torch.sqrt(torch.view_as_real(spectrum).pow(2).sum(-1) + 1e-9)
    expected = torch.log(torch.clamp(MelSpectrogram().filters.T @ magnitude, min=1e-5))
    assert mel.shape == (2, 80, 86) and lens.tolist() == [86, 86]
    assert torch.allclose(mel, expected, atol=1e-4)


def test_a_tone_is_in_its_bin_and_silence_at_the_floor():
    time = torch.arange(22_050) / 22_050
    mel, _ = MelSpectrogram()(torch.sin(2 * torch.pi * 1000.0 * time)[None])
    # Slaney's scale: 1000 Hz is mel 15 of 45.2 at 8000 Hz, so bin 15 / 45.245 * 81 - 1.
    assert mel[0, :, 40].argmax() == 26
    silence, _ = MelSpectrogram()(torch.zeros(1, 4096))
    assert silence == pytest.approx(torch.full((1, 80, 16), -11.5129), abs=1e-3)


def test_a_recording_has_the_same_mel_in_any_company():
    audio, lens = torch.randn(3, 9000), torch.tensor([9000, 5001, 700])
    together, mel_lens = MelSpectrogram()(audio, lens)
    assert mel_lens.tolist() == [35, 19, 2]
    for i, samples in enumerate(lens.tolist()):
        alone, _ = MelSpectrogram()(audio[i : i + 1, :samples])
        assert torch.allclose(together[i, :, : alone.shape[2]], alone[0], atol=1e-5)
        assert not together[i, :, alone.shape[2] :].any()


def test_bins_above_half_the_sample_rate_are_refused():
    with pytest.raises(ValueError, match="half the sample rate"):
        MelSpectrogram(sample_rate_hz=16_000, max_hz=9000.0)
