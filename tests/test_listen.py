"""Fixed recordings are listened to at every validation."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks.listen import Heard, Listen
from callbacks.wandb_log import WandbLog
from speechlm.batch import ResynthesisBatch
from speechlm.evals.pictures import mel_above_mel
from tests.test_vocoder import voice


class Echo(L.LightningModule):
    """Says everything back at half the volume; by tokens, it hums."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: ResynthesisBatch, batch_idx: int) -> Tensor:
        return self.weight.sum()

    def validation_step(self, batch: ResynthesisBatch, batch_idx: int) -> None:
        """Nothing to measure."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def resynthesize(self, batch: ResynthesisBatch) -> tuple[Tensor, Tensor]:
        return batch.audio / 2, batch.audio_lens


class Hummer(Echo):
    resynthesize = property()  # type: ignore[assignment]

    def decode(self, speech_tokens: Tensor, speech_token_lens: Tensor) -> Tensor:
        return torch.full((len(speech_tokens), 4000), 0.25)


class Deaf(Echo):
    def resynthesize(self, batch: ResynthesisBatch) -> tuple[Tensor, Tensor]:
        raise ValueError("there is no vocoder yet")


class Ear:
    """An ASR that hears how loud it is."""

    def to(self, device: torch.device) -> "Ear":
        return self

    def transcribe(self, audio: Tensor, audio_lens: Tensor, languages: list[str]) -> list[str]:
        loud = float(audio.abs().max()) > 0.15
        if languages == ["tlh"]:
            raise ValueError("this Whisper does not know the language 'tlh'")
        if languages == ["zh"]:
            return ["你好世界" if loud else "你好世"]
        return ["hello world" if loud else "hello"]


def heard(stage: L.LightningModule, folder: Path, listen: Listen, steps: int = 2) -> L.Trainer:
    batches = [voice(i, 2, 8192) for i in range(3)]
    for i, batch in enumerate(batches):
        batch.texts = ["hello world", ""]
        batch.cut_ids = [f"set/{i}-0", f"{i}-1"]
        batch.audio_lens[1] = 5000
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[listen], default_root_dir=folder, val_check_interval=1,
    )  # fmt: skip
    trainer.fit(stage, DataLoader(batches * 2, batch_size=None), DataLoader(batches, batch_size=None))
    return trainer


def test_sounds_and_pictures_of_the_first_recordings_are_written(tmp_path: Path):
    heard(Echo(), tmp_path, Listen(recordings=3))
    folder = tmp_path / "samples" / "0"
    assert {path.name for path in folder.iterdir()} == {"set_0-0", "0-1", "set_1-0"}
    names = {"original.flac", *(f"step-0000000{i}.{kind}" for i in (1, 2) for kind in ("flac", "png"))}
    assert {path.name for path in (folder / "0-1").iterdir()} == names
    original, rate = soundfile.read(folder / "0-1" / "original.flac")
    made, _ = soundfile.read(folder / "0-1" / "step-00000002.flac")
    assert rate == 22_050 and len(original) == len(made) == 5000
    assert np.abs(made - original / 2).max() < 1e-3


def test_words_are_counted_where_there_is_an_asr(tmp_path: Path):
    listen = Listen(recordings=2)
    listen.asr = Ear()  # type: ignore[assignment]
    trainer = heard(Echo(), tmp_path, listen)
    assert trainer.callback_metrics["val/0/wer_original"] == 0.0
    assert trainer.callback_metrics["val/0/wer_resynthesis"] == 0.5
    said = json.loads((tmp_path / "samples" / "0" / "step-00000001.json").read_text())
    assert said[0] == {"id": "set/0-0", "text": "hello world", "original": "hello world", "made": "hello"}


def test_errors_are_counted_in_the_recordings_language(tmp_path: Path):
    listen = Listen()
    listen.asr = Ear()  # type: ignore[assignment]

    def rates(*said: tuple[str, str]) -> dict[str, float]:
        loud, quiet = np.full(8000, 0.3, np.float32), np.full(8000, 0.1, np.float32)
        heard = [Heard(str(i), loud, quiet, 16_000, text, code) for i, (text, code) in enumerate(said)]
        return listen._understood(heard, torch.device("cpu"))

    assert rates(("你好世界", "zh")) == {"cer_original": 0.0, "cer_resynthesis": 0.25}
    both = rates(("你好世界", "zh"), ("hello world", "en"))
    assert both == {
        "cer_zh_original": 0.0, "wer_en_original": 0.0, "cer_zh_resynthesis": 0.25, "wer_en_resynthesis": 0.5,
    }  # fmt: skip
    assert rates(("", "en")) == rates(("nuqneH", "tlh")) == {}


def test_a_decoder_is_given_tokens_and_one_that_can_not_speak_does_not_stop_the_run(tmp_path: Path):
    heard(Hummer(), tmp_path / "x", Listen(recordings=1))
    made, _ = soundfile.read(tmp_path / "x" / "samples" / "0" / "set_0-0" / "step-00000001.flac")
    assert len(made) == 4000 and np.allclose(made, 0.25, atol=1e-3)
    trainer = heard(Deaf(), tmp_path / "y", Listen(recordings=1))
    assert trainer.global_step == 2 and not list((tmp_path / "y").rglob("*.flac"))


def test_only_every_nth_validation_is_listened_to(tmp_path: Path):
    heard(Echo(), tmp_path, Listen(recordings=1, every=2), steps=3)
    made = sorted(path.name for path in tmp_path.rglob("step-*.flac"))
    assert made == ["step-00000001.flac", "step-00000003.flac"]
    with pytest.raises(ValueError, match="at least 1"):
        Listen(recordings=0)


def test_wandb_gets_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sent: list[tuple[str, list[str], list[list[Any]], int]] = []
    logger = object.__new__(WandbLog)
    monkeypatch.setattr(WandbLog, "log_rows", lambda self, *table: sent.append(table))
    trainer: Any = SimpleNamespace(
        sanity_checking=False, is_global_zero=True, loggers=[logger], default_root_dir=str(tmp_path), global_step=7
    )
    listen = Listen(recordings=1)
    listen.on_validation_start(trainer, Echo())
    listen.on_validation_batch_end(trainer, Echo(), None, voice(0, 2, 8192), 0)
    listen.on_validation_epoch_end(trainer, Echo())
    ((key, columns, (row,), step),) = sent
    assert (key, step) == ("listen/0", 7) and len(columns) == len(row)
    files = [cell for cell in row if isinstance(cell, Path)]
    assert [path.suffix for path in files] == [".flac", ".flac", ".png"] and all(path.is_file() for path in files)


def test_the_picture_shows_both_mels():
    low, high = np.full((4, 30), -11.0), np.zeros((4, 20))
    from matplotlib import image

    pixels = image.imread(io.BytesIO(mel_above_mel(low, high + 1, 256 / 22_050)))
    assert pixels.shape[0] > 200 and len(np.unique(pixels[..., 0])) > 3
