"""The whole tour: every stage is better, on what was held out, than it was without training, by far more than chance gives."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
import torch

from datamodules.cuts import CutSource
from datamodules.mixture import RowSource
from datamodules.resynthesis import ResynthesisDataModule
from datamodules.rows import RowsDataModule
from speechlm import runs, tour
from speechlm.batch import ResynthesisBatch
from speechlm.load import build_stage, load_stage
from speechlm.stages.flow_decoder import FlowDecoder
from speechlm.stages.speech_lm import SpeechLM
from speechlm.stages.vocoder import Vocoder
from speechlm.tokens.clock import Clock
from tests.test_tour_voice import distances, margin

ROOT = Path(__file__).parents[1]
CLOCK = Clock(sample_rate_hz=16_000, token_rate_hz=12.5, hop_samples=256)
FAR = 4.0  # standard errors of the mean gain over held-out rows or recordings; chance gives that once in 15,000

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole tour, minutes of two cores; one that was begun in the folder TOUR, where that is set, goes on."""
    folder = Path(os.environ.get("TOUR") or tmp_path_factory.mktemp("tour"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr("sys.argv", ["tour", "--out", str(folder)])
        tour.main()
    return folder


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def twins(run: Path) -> tuple[L.LightningModule, L.LightningModule]:
    """The stage as it was trained, and as its config builds it."""
    config = runs.read_config(run)
    assert config is not None
    torch.manual_seed(1)
    return load_stage(run), build_stage(config).eval()


@torch.no_grad()
def row_losses(stage: L.LightningModule, rows: Path) -> list[float]:
    """Mean loss of every held-out row that has something to predict."""
    assert isinstance(stage, SpeechLM)
    data = RowsDataModule(CLOCK, [RowSource(str(rows), weight=1.0)], {"heldout": str(rows)})
    data.setup()
    found = [stage.score(batch).losses for batch in data.val_dataloader()[0]]
    return [float(losses.mean()) for losses in found if len(losses)]


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        ("text_to_token", "tts"),
        ("speech_lm", "text"),
        ("speech_lm", "speech"),
        ("speech_lm", "interleaved"),
        ("speech_lm_plain", "text"),
        ("speech_lm_plain", "speech"),
        ("chat", "chat"),
    ],
)
def test_language_models_predict_what_was_held_out_better_than_untrained(out: Path, run: str, kind: str):
    trained, untrained = (row_losses(stage, out / "rows_heldout" / kind) for stage in twins(out / run))
    assert margin(untrained, trained) > FAR


def test_interleaved_documents_are_predicted_better_by_the_model_that_learnt_from_such(out: Path):
    with_them, without = (
        row_losses(load_stage(out / run), out / "rows_heldout" / "interleaved")
        for run in ("speech_lm", "speech_lm_plain")
    )
    assert margin(without, with_them) > FAR


def heldout(out: Path) -> Iterator[ResynthesisBatch]:
    """Held-out recordings with the codes of the tour's tokenizer."""
    path = str(out / "tokens_heldout")
    data = ResynthesisDataModule(CLOCK, [CutSource(path)], {"heldout": path}, batch_seconds=8.0, max_seconds=12.0)
    data.setup()
    yield from data.val_dataloader()[0]


@torch.no_grad()
def test_decoder_and_vocoder_come_nearer_to_heldout_recordings_than_untrained_ones(out: Path):
    decoders, vocoders = twins(out / "flow_decoder"), twins(out / "vocoder")
    mels: tuple[list[float], ...] = ([], [])
    sounds: tuple[list[float], ...] = ([], [])
    for batch in heldout(out):
        for n, (decoder, vocoder) in enumerate(zip(decoders, vocoders, strict=True)):
            assert isinstance(decoder, FlowDecoder) and isinstance(vocoder, Vocoder)
            mel, lens = decoder.mel(batch.audio, batch.audio_lens)
            mels[n].extend(distances(decoder.decode(batch.speech_tokens, batch.speech_token_lens).mel, mel, lens))
            heard = vocoder.mel(vocoder.decode(mel, lens), lens * CLOCK.hop_samples)[0]
            sounds[n].extend(distances(heard, mel, lens))
    assert margin(mels[1], mels[0]) > FAR and margin(sounds[1], sounds[0]) > FAR


def test_the_page_says_how_much_was_understood(out: Path):
    """Tokens that say nothing leave every word wrong, and six kinds of questions guess one in six, or the commonest kind."""
    tasks = json.loads((out / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))["tasks"]
    found = {name: {m["name"]: m for m in task["metrics"]} for name, task in tasks.items()}
    assert found["tokenizer"]["WER en clipped"]["high"] < 90
    assert found["questions_known"]["accuracy S->T"]["low"] > 40
    assert (out / "report.html").stat().st_size > 100_000
