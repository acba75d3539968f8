"""The vocoder stage: what it promises, exact resuming of both optimizers, accumulation, refusals."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import yaml
from torch import Tensor
from torch.utils.data import IterableDataset

from datamodules.resume import position
from speechlm.batch import ResynthesisBatch
from speechlm.fit import main as fit_main
from speechlm.load import load_stage
from speechlm.nn.discriminators import Jury
from speechlm.nn.generator import Spoken
from speechlm.nn.hift import HiFT
from speechlm.nn.hift_released import read_hift, write_hift
from speechlm.stages.optim import AdamWSettings
from speechlm.stages.vocoder import Vocoder, VocoderLosses
from speechlm.tokens.clock import Clock

CLOCK = Clock(sample_rate_hz=22_050, token_rate_hz=12.5, hop_samples=256)
PIECE = 256 * 8


def voice(index: int, size: int = 2, samples: int = PIECE) -> ResynthesisBatch:
    """`size` pieces of buzzing tones with a little noise, the same for the same index."""
    draw = np.random.default_rng(index)
    hz = draw.uniform(100, 300, (size, 1))
    time = np.arange(samples) / 22_050
    audio = 0.1 * sum(np.sin(2 * np.pi * k * hz * time + k) / k for k in range(1, 6)) + 0.005 * draw.standard_normal(
        (size, samples)
    )
    f0 = np.repeat(hz, samples // 256, 1)
    return ResynthesisBatch(
        speech_tokens=torch.zeros(size, 0, dtype=torch.long),
        speech_token_lens=torch.zeros(size, dtype=torch.long),
        audio=torch.from_numpy(audio.astype(np.float32)),
        audio_lens=torch.full((size,), samples),
        sample_rate_hz=22_050,
        speakers=["a"] * size,
        texts=[""] * size,
        cut_ids=[f"{index}-{i}" for i in range(size)],
        f0=torch.from_numpy(f0.astype(np.float32)),
    )


class Voices(L.LightningDataModule):
    """An endless stream of `voice`s that a resumed run enters where it left off; batch i has `size` of the global stream."""

    def __init__(self, size: int = 2, change: Any = None) -> None:
        super().__init__()
        self.size, self.change = size, change

    def train_dataloader(self) -> "VoiceStream":
        return VoiceStream(position(self.trainer)[1], self.size, self.change)


class VoiceStream(IterableDataset):
    def __init__(self, start: int, size: int, change: Any) -> None:
        self.start, self.size, self.change = start, size, change

    def __iter__(self) -> Iterator[ResynthesisBatch]:
        for index in range(self.start, 1000):
            batch = voice(index, self.size)
            yield self.change(index, batch) if self.change else batch


def stage(**settings: Any) -> Vocoder:
    torch.manual_seed(0)
    generator = HiFT(num_mels=20, channels=16, f0_channels=8)
    jury = Jury((2, 3), ((256, 30, 150),), (4, 8, 8), 4)
    return Vocoder(CLOCK, generator, jury, **settings)


def fit(
    vocoder: Vocoder, folder: Path, steps: int, ckpt_path: str | None = None, data: Any = None, **settings: Any
) -> Vocoder:
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, use_distributed_sampler=False, default_root_dir=folder, **settings,
    )  # fmt: skip
    trainer.fit(vocoder, datamodule=data or Voices(), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return vocoder


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal, bit by bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return all(same(x, y) for x, y in zip(a, b, strict=True)) if isinstance(a, list | tuple) else a == b


# -- training ----------------------------------------------------------------------------------------------------------


LATE = {"judges_after": 2, "losses": VocoderLosses(spectra=1.0)}


@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate": 2, "clip": 1.0, "true_pitch_steps": 3}, LATE],
    ids=["plain", "all", "late"],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_both_optimizers_resume_exactly(tmp_path: Path, settings: dict[str, Any], precision: str):
    schedule = AdamWSettings(lr=2e-4, weight_decay=0.0, decay="linear", warmup_steps=2, total_steps=6)
    settings = {**settings, "optimizer": schedule, "discriminator_optimizer": schedule}
    unbroken = fit(stage(**settings), tmp_path / "x", 6, precision=precision)
    fit(stage(**settings), tmp_path / "y", 3, precision=precision)
    resumed = fit(stage(**settings), tmp_path / "y", 6, str(tmp_path / "y" / "3.ckpt"), precision=precision)
    assert same(dict(unbroken.state_dict()), dict(resumed.state_dict()))
    states = [torch.load(tmp_path / name / "6.ckpt", weights_only=True) for name in "xy"]
    assert len(states[0]["optimizer_states"]) == 2
    assert all(len(state["state"]) > 10 for state in states[0]["optimizer_states"])
    assert same(states[0]["optimizer_states"], states[1]["optimizer_states"])
    assert same(states[0]["lr_schedulers"], states[1]["lr_schedulers"])


def test_a_step_is_the_generators_and_changes_both(tmp_path: Path):
    before, after = stage(), fit(stage(), tmp_path, 3)
    assert after.trainer.global_step == 3
    assert after.trainer.fit_loop.epoch_loop.batch_progress.total.processed == 3
    for part in ("generator", "discriminator"):
        old, new = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        # Of the excitation's mix and of each judge's last layer too.
        assert all(not torch.equal(old[name], new[name]) for name in old if "m_source" in name or "post" in name)


def halves(batch: ResynthesisBatch, first: bool) -> ResynthesisBatch:
    part = slice(0, 2) if first else slice(2, 4)
    pick = {name: getattr(batch, name)[part] for name in ("audio", "audio_lens", "f0", "speakers", "texts", "cut_ids")}
    none = {"speech_tokens": torch.zeros(2, 0, dtype=torch.long), "speech_token_lens": torch.zeros(2, dtype=torch.long)}
    return ResynthesisBatch(**none, sample_rate_hz=22_050, **pick)


def test_judges_that_come_late_learn_nothing_before(tmp_path: Path):
    vocoder = stage(**LATE)
    judges, generator = (
        [p.detach().clone() for p in part.parameters()] for part in (vocoder.discriminator, vocoder.generator)
    )
    assert vocoder.discriminator is not None
    fit(vocoder, tmp_path, 2)
    assert all(torch.equal(a, b) for a, b in zip(judges, vocoder.discriminator.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(generator, vocoder.generator.parameters(), strict=True))
    vocoder = stage(**LATE)
    fit(vocoder, tmp_path, 3)
    assert not any(torch.equal(a, b) for a, b in zip(judges, vocoder.discriminator.parameters(), strict=True))


def test_two_small_batches_learn_what_one_large_one_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(HiFT, "excite", quiet(HiFT.excite))  # the noise of a piece depends on its place in the batch
    losses = VocoderLosses(relative=0.0)  # its median is that of a batch
    sgd = AdamWSettings(lr=1e-3, weight_decay=0.0, decay="constant", eps=1.0)  # nearly a gradient step
    settings = {"losses": losses, "optimizer": sgd, "discriminator_optimizer": sgd}
    large = fit(stage(**settings), tmp_path / "x", 3, data=Voices(4))
    data = Voices(4, lambda index, batch: halves(voice(index // 2, 4), index % 2 == 0))
    small = fit(stage(**settings, accumulate=2), tmp_path / "y", 3, data=data)
    start = stage()
    for name, value in large.named_parameters():
        moved = (value - start.get_parameter(name)).abs().max()
        assert (value - small.get_parameter(name)).abs().max() <= 1e-3 * moved + 1e-9, name


class HalfVoices(Voices):
    """To each of two ranks its half of every batch of four."""

    def train_dataloader(self) -> VoiceStream:
        return VoiceStream(0, 4, lambda index, batch: halves(batch, self.trainer.global_rank == 0))


def _train_on_rank(rank: int, port: int, folder: Path, settings: dict[str, Any]) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
    }  # fmt: skip
    torch.set_num_threads(1)
    HiFT.excite = quiet(HiFT.excite)  # type: ignore[method-assign]
    turns = "ddp_find_unused_parameters_true"
    vocoder = fit(stage(**settings), folder / str(rank), 3, data=HalfVoices(), devices=2, strategy=turns)
    torch.save(vocoder.state_dict(), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sgd = AdamWSettings(lr=1e-3, weight_decay=0.0, decay="constant", eps=1.0)
    settings = {"losses": VocoderLosses(relative=0.0), "optimizer": sgd, "discriminator_optimizer": sgd}
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    mp.spawn(_train_on_rank, (port, tmp_path, settings), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert same(dict(first), dict(second))
    monkeypatch.setattr(HiFT, "excite", quiet(HiFT.excite))
    one, start = fit(stage(**settings), tmp_path / "one", 3, data=Voices(4)).state_dict(), stage().state_dict()
    assert all((one[n] - first[n]).abs().max() <= 1e-3 * (one[n] - start[n]).abs().max() + 1e-9 for n in one)


def quiet(excite: Any) -> Any:
    return lambda self, f0, seeds=None, *rest: excite(self, f0, None if seeds is None else seeds * 0, *rest)


def test_it_learns_the_mel_of_a_voice(tmp_path: Path):
    fast = AdamWSettings(lr=2e-3, weight_decay=0.0, decay="constant", eps=1e-8)
    vocoder = stage(optimizer=fast, discriminator_optimizer=fast, true_pitch_steps=1000)
    data = Voices(change=lambda index, batch: voice(0))

    def error() -> float:
        mel, _ = vocoder.full_mel(voice(0).audio)
        made, _ = vocoder.full_mel(vocoder.decode(vocoder.mel(voice(0).audio)[0]))
        return float((made - mel).abs().mean())

    before = error()
    fit(vocoder, tmp_path, 60, data=data)
    assert error() < 0.5 * before


def test_a_batch_without_a_finite_gradient_is_skipped_and_a_run_of_them_stops(tmp_path: Path):
    def spoil(index: int, batch: ResynthesisBatch) -> ResynthesisBatch:
        if index == 1:
            batch.audio[0, 7] = float("nan")
        return batch

    vocoder = fit(stage(), tmp_path, 3, data=Voices(change=spoil))
    assert vocoder.trainer.fit_loop.epoch_loop.batch_progress.total.processed == 4
    assert all(p.isfinite().all() for p in vocoder.parameters())

    def ruin(index: int, batch: ResynthesisBatch) -> ResynthesisBatch:
        batch.audio[:] = float("nan")
        return batch

    with pytest.raises(RuntimeError, match="no finite gradient"):
        fit(stage(), tmp_path, 3, data=Voices(change=ruin))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": 0}, "accumulate is at least 1"),
        ({"optimizer": AdamWSettings(lr_scale={"nothing": 0.0})}, "no part of the model"),
    ],
)
def test_settings_that_can_not_train_are_refused(settings: Any, message: str):
    with pytest.raises(ValueError, match=message):
        stage(**settings)


def test_float16_is_refused():
    vocoder = stage()
    vocoder._trainer = SimpleNamespace(precision="16-mixed")  # type: ignore[assignment]
    with pytest.raises(ValueError, match="bf16-mixed or 32-true"):
        vocoder.on_fit_start()


def test_pitch_that_is_not_there_is_asked_for_by_name(tmp_path: Path):
    def deaf(index: int, batch: ResynthesisBatch) -> ResynthesisBatch:
        batch.f0 = None
        return batch

    with pytest.raises(ValueError, match="pitch: harvest"):
        fit(stage(), tmp_path, 1, data=Voices(change=deaf))
    fit(stage(losses=VocoderLosses(pitch=0.0)), tmp_path, 1, data=Voices(change=deaf))


def test_without_judges_it_only_speaks(tmp_path: Path):
    vocoder = Vocoder(CLOCK, HiFT(num_mels=20, channels=16, f0_channels=8))
    assert vocoder.decode(torch.zeros(1, 20, 4)).shape == (1, 1024)
    with pytest.raises(ValueError, match="discriminator"):
        fit(vocoder, tmp_path, 1)


def test_without_judges_it_learns_as_with_judges_that_have_not_come_yet(tmp_path: Path):
    late = {"judges_after": 2, "losses": VocoderLosses(spectra=1.0)}
    waited_for, alone = stage(**late), stage(**late)
    alone.discriminator = None
    fit(waited_for, tmp_path / "x", 2)
    fit(alone, tmp_path / "y", 2)
    assert same(dict(waited_for.generator.state_dict()), dict(alone.generator.state_dict()))
    resumed = stage(**late)
    resumed.discriminator = None
    with pytest.raises(ValueError, match="judges_after"):
        fit(resumed, tmp_path / "y", 3)


# -- what it promises --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speaker() -> Vocoder:
    return stage().eval()


def test_a_batch_is_decoded_as_one_by_one(speaker: Vocoder):
    mel, lens = torch.randn(3, 20, 50), torch.tensor([50, 1, 33])
    together = speaker.decode(mel, lens, seed=4)
    for i, frames in enumerate(lens.tolist()):
        alone = speaker.decode(mel[i : i + 1, :, :frames], seed=4)
        assert (together[i, : frames * 256] - alone[0]).abs().max() < 1e-4
        assert not together[i, frames * 256 :].any()


def test_a_stream_is_decode(speaker: Vocoder):
    mel = torch.randn(1, 20, 90)
    stream = speaker.stream(seed=2)
    pieces = [stream.push(piece, last=i == 8) for i, piece in enumerate(mel.split(10, dim=2))]
    assert (torch.cat(pieces, 1) - speaker.decode(mel, seed=2)).abs().max() < 1e-4
    # As far behind as it says.
    assert [p.shape[1] for p in pieces][:3] == [0, (20 - speaker.generator.lookahead_frames) * 256, 10 * 256]


def test_copy_synthesis_has_the_length_of_the_mel(speaker: Vocoder):
    batch = voice(0, 2, 256 * 30)
    batch.audio_lens[1] = 256 * 20 + 100
    audio, lens = speaker.resynthesize(batch)
    assert lens.tolist() == [256 * 30, 256 * 20]
    assert audio.shape == (2, 256 * 30) and not audio[1, 256 * 20 :].any()


@pytest.mark.parametrize(
    ("mel", "lens", "message"),
    [
        (torch.zeros(1, 19, 5), None, r"\(B, 20, F\)"),
        (torch.zeros(20, 5), None, "at least one frame"),
        (torch.zeros(1, 20, 0), None, "at least one frame"),
        (torch.full((1, 20, 5), float("nan")), None, "NaN or infinite"),
        (torch.zeros(2, 20, 5), torch.tensor([5, 6]), "from 1 to 5"),
        (torch.zeros(2, 20, 5), torch.tensor([5, 0]), "from 1 to 5"),
        (torch.zeros(2, 20, 5), torch.tensor([5]), "2 lengths"),
    ],
)
def test_bad_mels_are_refused(speaker: Vocoder, mel: Tensor, lens: Tensor | None, message: str):
    with pytest.raises(ValueError, match=message):
        speaker.decode(mel, lens)


def test_a_generator_of_another_rate_is_refused():
    with pytest.raises(ValueError, match=r"16000 Hz and 160 .* 22050 Hz with 256"):
        Vocoder(Clock(), HiFT(num_mels=20, channels=16, f0_channels=8))


def test_a_generator_that_hears_no_pitch_learns_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    speak = HiFT.forward
    monkeypatch.setattr(HiFT, "forward", lambda *a, **k: Spoken(speak(*a, **k).audio, None))
    assert fit(stage(), tmp_path, 1).trainer.global_step == 1


# -- from a config -----------------------------------------------------------------------------------------------------


def test_released_weights_are_tuned_and_a_run_is_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    config = yaml.safe_load((root / "configs" / "vocoder" / "tiny" / "paper.yaml").read_text())
    weights = str(root / "tests" / "golden" / "glm4voice_hift" / "hift.safetensors")
    released = {"class_path": "speechlm.nn.hift_released.read_hift", "init_args": {"path": weights}}
    config["model"]["init_args"]["generator"] = released
    config["trainer"] |= {"limit_val_batches": 0, "max_steps": 1}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    fit_main(["--config", str(tmp_path / "run.yaml"), "--runs_dir", str(tmp_path)])
    loaded = load_stage(tmp_path / "tiny_vocoder_paper")
    assert isinstance(loaded, Vocoder)
    moved = [
        (a - b).abs().max() for a, b in zip(read_hift(weights).parameters(), loaded.generator.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 1e-2  # one step away from the released weights
    write_hift(loaded.generator, tmp_path / "hift.pt")
    mel = torch.randn(1, 16, 9)
    with torch.no_grad():
        assert torch.equal(read_hift(tmp_path / "hift.pt")(mel).audio, loaded.decode(mel))
