"""Log-mel: equal to transformers' extractor, the same in any batch, and causal where asked for."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from speechlm.nn.log_mel import LogMel

LENGTHS = [16000, 20000, 5000, 1280, 300]


def recordings() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(n, generator=generator) * torch.linspace(0, 1, n) for n in LENGTHS]


def batch_of(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


@pytest.mark.parametrize("bins", [80, 128])
def test_a_batch_gives_what_transformers_gives_each_recording_alone(bins: int):
    extractor = WhisperFeatureExtractor(feature_size=bins)
    mel, mel_lens = LogMel(bins)(*batch_of(recordings()))
    for i, row in enumerate(recordings()):
        settings = {
            "padding": "longest",
            "pad_to_multiple_of": 1280,
            "return_attention_mask": True,
            "return_tensors": "np",
        }
        expected = extractor(row.numpy(), sampling_rate=16000, **settings)
        frames = expected["input_features"].shape[2]
        np.testing.assert_allclose(mel[i, :, :frames].numpy(), expected["input_features"][0], atol=1e-4)
        assert mel_lens[i] == expected["attention_mask"].sum()


def test_thirty_padded_seconds_are_whisper_s_own_features():
    audio = torch.zeros(1, 480_000)
    audio[0, :16000] = recordings()[0]
    expected = WhisperFeatureExtractor()(audio[0, :16000].numpy(), sampling_rate=16000, return_tensors="np")
    mel, _ = LogMel(80)(audio, torch.tensor([480_000]))
    np.testing.assert_allclose(mel.numpy(), expected["input_features"], atol=1e-4)


def test_frames_behind_the_last_whole_token_are_zero():
    mel, mel_lens = LogMel(80)(*batch_of(recordings()))
    for row, length in zip(mel, -(-mel_lens // 8) * 8, strict=True):
        assert torch.all(row[:, length:] == 0) and torch.any(row[:, length - 1] != 0)


def test_a_loud_end_changes_the_beginning_only_where_the_floor_hangs_from_the_whole_recording():
    quiet = 1e-4 * torch.randn(32_000, generator=torch.Generator().manual_seed(1))
    loud = quiet.clone()
    loud[16_000:] = torch.randn(16_000, generator=torch.Generator().manual_seed(2))
    both = torch.stack([quiet, loud])
    clipped, running = (LogMel(80, floor=f)(both, torch.tensor([32_000, 32_000]))[0] for f in ("clip", "running"))
    assert not torch.equal(clipped[0, :, :98], clipped[1, :, :98])
    assert torch.equal(running[0, :, :98], running[1, :, :98])


def test_an_unknown_floor_is_refused_by_name():
    with pytest.raises(ValueError, match="floor must be 'clip' or 'running', got 'max'"):
        LogMel(80, floor="max")
