"""From a run of the language model to a folder for everybody else, by the command."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from speechlm import export, fit
from speechlm.load import load_stage
from speechlm.nn.lora import merge_lora

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module", params=["qwen2.5_1.5b", "lora"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of training."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        config = ["--config", f"configs/speech_lm/tiny/{request.param}.yaml", "--runs_dir", str(folder)]
        fit.main([*config, "--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"])
    return folder / f"tiny_speech_lm_{request.param}"


def trained_logits(run: Path, ids: torch.Tensor, ema: bool = False) -> torch.Tensor:
    stage = load_stage(run)
    if ema:
        stage.ema.copy_to(stage.model)
    return stage.lm(ids).logits.detach()


def test_an_exported_run_has_the_trained_logits_and_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    export.main(["--run", str(run), "--out", str(tmp_path / "out"), "--dtype", "float32", "--verify"])
    assert "logits: 0\n" in capsys.readouterr().out
    model, tokenizer = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForCausalLM, AutoTokenizer))
    text = "how much <|begin_of_audio|><|audio_0|><|audio_63|>"
    ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
    assert ids[0, -2:].tolist() == [519, 582]
    torch.testing.assert_close(model(ids).logits, trained_logits(run, ids), rtol=1e-5, atol=1e-5)


def test_the_average_is_exported_where_asked_for(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["--run", str(run), "--out", str(tmp_path / "out"), "--dtype", "float32", "--ema"]
    if "lora" in run.name:
        with pytest.raises(SystemExit):
            export.main(command)
        assert "there is no average" in capsys.readouterr().err
        return
    export.main(command)
    ids = torch.arange(583)[None, ::7]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    torch.testing.assert_close(exported, trained_logits(run, ids, ema=True), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(exported, trained_logits(run, ids), atol=1e-3)


def test_merged_adapters_are_part_of_the_checkpoint_that_goes_on(run: Path):
    stage = load_stage(run)
    ids = torch.arange(583)[None, ::7]
    before = stage.lm(ids).logits
    merge_lora(stage.lm)
    torch.testing.assert_close(stage.lm(ids).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "whisper"], "trained a SpeechLM, which can not be exported as whisper"),
        (["--format", "glm4voice"], "only a Glm has the form"),
        (["--text_tokenizer", "tests/golden/glm4voice_tokenizer"], "--text_tokenizer"),
        (["--released", "assets"], "not allowed with"),
    ],
)
def test_what_can_not_be_written_is_refused(
    run: Path, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        export.main(["--run", str(run), "--out", str(tmp_path / "out"), *arguments])
    assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_the_released_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        export.main(["--released", "assets/tiny-lm/glm", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2 and "padded_vocab_size" in capsys.readouterr().err


def test_rows_of_another_vocabulary_are_refused_with_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = ["--config", "configs/speech_lm/tiny/lora.yaml", "--runs_dir", str(tmp_path)]
    inline = ["--model.init_args.vocab", '{"num_text": 512, "num_speech": 63}']
    with pytest.raises(SystemExit) as stopped:
        fit.main([*config, *inline])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "a9826833973baf28" in said and "num_speech=63" in said
