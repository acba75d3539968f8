"""The export command: a run goes out in the form that was asked for, or is told why not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speechlm import export, fit
from speechlm.load import load_stage
from speechlm.tokenizers import Glm4VoiceTokens, RunTokens

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps on from a released tokenizer."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        config = ["--config", "configs/speech_tokenizer/tiny/glm4voice_continue.yaml", "--runs_dir", str(folder)]
        fit.main([*config, "--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"])
    return folder / "tiny_glm4voice_continue"


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_a_trained_run_goes_out_in_the_released_form_and_gives_the_same_tokens(run: Path, tmp_path: Path):
    export.main(["--run", str(run), "--format", "glm4voice", "--out", str(tmp_path / "out")])
    released, trained = Glm4VoiceTokens(str(tmp_path / "out")), RunTokens(str(run))
    audio = 0.1 * torch.randn(2, 15_360, generator=torch.Generator().manual_seed(0))
    lens = torch.tensor([15_360, 7_000])
    torch.testing.assert_close(released.tokenize(audio, lens), trained.tokenize(audio, lens), atol=0, rtol=0)
    written = load_file(tmp_path / "out" / "model.safetensors")
    kept = load_stage(run).state_dict()["model.encoder.quantizer.codebook"]
    assert torch.equal(written["model.encoder.codebook.weight"], kept)
    golden = load_file(ROOT / "tests/golden/glm4voice_tokenizer/model.safetensors")
    assert not torch.equal(golden["model.encoder.codebook.weight"], kept)
    assert {n: (t.shape, t.dtype) for n, t in written.items()} == {n: (t.shape, t.dtype) for n, t in golden.items()}


def test_a_quantised_run_is_no_plain_whisper(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        export.main(["--run", str(run), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "this one has a bottleneck" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        export.main(["--run", str(tmp_path), "--out", str(tmp_path / "out"), "--format", "glm4voice"])
    assert stopped.value.code == 2
    assert "no run folder" in capsys.readouterr().err
