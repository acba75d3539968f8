"""A ready HiFi-GAN through the interface of the vocoders."""

import json
from pathlib import Path

import pytest
import torch
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from speechlm.nn.hifigan import HifiGan
from speechlm.nn.weight_norm import published_names
from speechlm.stages.vocoder import Vocoder
from speechlm.tokens.clock import Clock

SHAPE = {
    "model_in_dim": 8,
    "sampling_rate": 22_050,
    "upsample_initial_channel": 16,
    "upsample_rates": [4, 4],
    "upsample_kernel_sizes": [8, 8],
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    "normalize_before": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in the Hugging Face form, loud enough to hear."""
    torch.manual_seed(0)
    network = SpeechT5HifiGan(SpeechT5HifiGanConfig(**SHAPE))
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter) * (0.2 if parameter.ndim > 1 else 0.02)
    path = tmp_path_factory.mktemp("hifigan")
    network.save_pretrained(path)
    return path


@torch.no_grad()
def test_a_hugging_face_folder_speaks_as_transformers_does(folder: Path):
    hifigan, theirs = HifiGan(str(folder)), SpeechT5HifiGan.from_pretrained(folder)
    assert (hifigan.num_mels, hifigan.hop_samples, hifigan.sample_rate_hz) == (8, 16, 22_050)
    mel = torch.randn(2, 8, 30)
    audio = hifigan(mel).audio
    assert audio.shape == (2, 480) and audio.std() > 1e-3
    assert torch.equal(audio, theirs(mel.transpose(1, 2)))


@torch.no_grad()
def test_hifi_gans_own_files_are_read(folder: Path, tmp_path: Path):
    theirs = SpeechT5HifiGan.from_pretrained(folder)
    mel = torch.randn(1, 8, 20)
    expected = theirs(mel.transpose(1, 2))
    theirs.apply_weight_norm()
    state = published_names(theirs.state_dict())
    own = {n.replace("upsampler.", "ups."): v for n, v in state.items() if n not in ("mean", "scale")}
    assert "ups.0.weight_g" in own
    torch.save({"generator": own}, tmp_path / "generator_v1")
    config = {("num_mels" if name == "model_in_dim" else name): value for name, value in SHAPE.items()}
    (tmp_path / "config.json").write_text(json.dumps({**config, "resblock": "1", "fmax": 8000}))
    assert torch.allclose(HifiGan(str(tmp_path / "generator_v1"))(mel).audio, expected, atol=1e-6)
    (tmp_path / "config.json").write_text(json.dumps({**config, "resblock": "2"}))
    with pytest.raises(ValueError, match="type '2'"):
        HifiGan(str(tmp_path / "generator_v1"))


@torch.no_grad()
def test_batches_and_streams_change_nothing(folder: Path):
    hifigan = HifiGan(str(folder))
    mel, lens = torch.randn(3, 8, 90), torch.tensor([90, 33, 90])
    together = hifigan(mel, lens).audio
    alone = hifigan(mel[1:2, :, :33]).audio
    assert torch.allclose(together[1, : 33 * 16], alone[0], atol=1e-6)
    assert not together[1, 33 * 16 :].any()
    stream = hifigan.stream(3)
    pieces = [stream.push(piece, last=i == 4) for i, piece in enumerate(mel.split(20, dim=2))]
    assert pieces[1].shape == (3, 20 * 16)
    assert torch.allclose(torch.cat(pieces, 1), hifigan(mel).audio, atol=1e-5)


def test_it_is_a_vocoder_like_any_other(folder: Path):
    vocoder = Vocoder(Clock(sample_rate_hz=22_050, hop_samples=16), HifiGan(str(folder)))
    mel = torch.randn(1, 8, 70)
    whole = vocoder.decode(mel)
    stream = vocoder.stream()
    assert torch.allclose(
        torch.cat([stream.push(mel[:, :, :50]), stream.push(mel[:, :, 50:], True)], 1), whole, atol=1e-5
    )
    with pytest.raises(ValueError, match="with 16"):
        Vocoder(Clock(sample_rate_hz=22_050, hop_samples=256), HifiGan(str(folder)))


def test_other_files_are_refused(tmp_path: Path):
    torch.save({"generator": {"a": torch.zeros(1)}}, tmp_path / "g")
    with pytest.raises(ValueError, match="no generator"):
        HifiGan(str(tmp_path / "g"))
    torch.save({"generator": Path("x")}, tmp_path / "g")
    with pytest.raises(ValueError, match="read safely"):
        HifiGan(str(tmp_path / "g"))
