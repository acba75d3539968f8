"""The weights that the tour starts decoder and vocoder from: they fit its configs, and speak far better than untrained ones."""

from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from torch import Tensor

from datamodules.cuts import CutSource
from datamodules.resynthesis import ResynthesisDataModule
from speechlm import runs
from speechlm.batch import ResynthesisBatch
from speechlm.load import build_stage
from speechlm.nn.masks import length_mask
from speechlm.stages.flow_decoder import FlowDecoder
from speechlm.stages.vocoder import Vocoder
from speechlm.tokens.clock import Clock

ROOT = Path(__file__).parents[1]
CLOCK = Clock(sample_rate_hz=16_000, token_rate_hz=12.5, hop_samples=256)


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    torch.set_num_threads(1)


def twins(name: str) -> tuple[L.LightningModule, L.LightningModule]:
    """The stage of a tour's config with the shipped weights, and one with none."""
    config = yaml.safe_load((ROOT / "configs" / "tour" / f"{name}.yaml").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    shipped, untrained = build_stage(config), build_stage(config)
    runs.load_weights(shipped, config["init_from"])
    return shipped.eval(), untrained.eval()


def heldout() -> Iterator[ResynthesisBatch]:
    """Held-out recordings with the codes of a tokenizer that the embedded job trained."""
    path = "assets/asterisk-en/tiny_heldout.jsonl.gz"
    data = ResynthesisDataModule(CLOCK, [CutSource(path)], {"heldout": path}, batch_seconds=6.0, max_seconds=6.0)
    data.setup()
    yield from data.val_dataloader()[0]


def distances(made: Tensor, true: Tensor, lens: Tensor) -> list[float]:
    """L1 of (B, M, F) log-mels over each recording's frames."""
    frames = min(made.shape[2], true.shape[2])
    far = (made[:, :, :frames] - true[:, :, :frames]).abs().mean(1)
    real = length_mask(lens.clamp(max=frames), frames)
    return [float(row[kept].mean()) for row, kept in zip(far, real, strict=True)]


def margin(before: list[float], after: list[float]) -> float:
    """Mean of the paired differences in standard errors of it."""
    gains = torch.tensor(before) - torch.tensor(after)
    return float(gains.mean() / (gains.std() / len(gains) ** 0.5))


def test_the_shipped_vocoder_is_better_than_an_untrained_one_on_every_heldout_recording():
    found: dict[int, list[float]] = {0: [], 1: []}
    for batch in heldout():
        for n, stage in enumerate(twins("vocoder")):
            assert isinstance(stage, Vocoder)
            mel, lens = stage.mel(batch.audio, batch.audio_lens)
            spoken = stage.decode(mel, lens)
            found[n] += distances(stage.mel(spoken, lens * 256)[0], mel, lens)
    assert all(one < other for one, other in zip(*found.values(), strict=True))
    assert margin(found[1], found[0]) > 5 and sum(found[0]) / len(found[0]) < 0.5


@torch.no_grad()
def test_the_shipped_decoder_is_better_than_an_untrained_one_on_heldout_recordings():
    found: dict[int, list[float]] = {0: [], 1: []}
    for batch in heldout():
        for n, stage in enumerate(twins("flow_decoder")):
            assert isinstance(stage, FlowDecoder)
            mel, lens = stage.mel(batch.audio, batch.audio_lens)
            made = stage.decode(batch.speech_tokens, batch.speech_token_lens).mel
            found[n] += distances(made, mel, lens)
    print({n: round(sum(values) / len(values), 3) for n, values in found.items()}, margin(found[1], found[0]))
    assert margin(found[1], found[0]) > 5


def test_weights_are_small_enough_to_ship():
    sizes = [path.stat().st_size for path in (ROOT / "assets" / "tour-voice").glob("*.safetensors")]
    assert len(sizes) == 2 and sum(sizes) < 16e6
