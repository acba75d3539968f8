"""Every config parses; every tiny one trains, is stopped and goes on."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from speechlm import fit, runs

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(  # of the other verbs configs are parsed and run by their own tests
    path for path in (ROOT / "configs").rglob("*.yaml") if "trainer" in yaml.safe_load(path.read_text(encoding="utf-8"))
)
TINY = [path for path in CONFIGS if path.parent.name == "tiny"]


class Parsed(fit.FitCLI):
    """The CLI up to the point where weights would be loaded."""

    def instantiate_classes(self) -> None:
        self.parsed = True


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
def test_a_config_parses_and_states_its_rates_once(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fit, "FitCLI", Parsed)
    cli = fit.build(["--config", str(path), "--runs_dir", str(tmp_path)])
    assert cli.parsed
    clock = cli.config.clock
    assert cli.config.model.init_args.clock == clock
    assert cli.config.data.init_args.clock == clock
    assert "clock" not in yaml.safe_load(path.read_text())["model"]["init_args"]


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_a_tiny_config_trains_two_steps_and_goes_on_for_two_more(path: Path, tmp_path: Path):
    torch.set_num_threads(1)
    common = ["--config", str(path), "--runs_dir", str(tmp_path), "--trainer.limit_val_batches", "1"]
    fit.main([*common, "--trainer.max_steps", "2"])
    fit.main([*common, "--trainer.max_steps", "4"])
    run = tmp_path / yaml.safe_load(path.read_text())["name"]
    newest = runs.newest_checkpoint(run)
    assert newest is not None and newest.step == 4
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) >= 3
    vocab = set() if path.parents[1].name == "vocoder" else {"vocab.json"}  # a vocoder knows no tokens
    assert {"config.yaml", "env.json"} | vocab <= {file.name for file in run.iterdir()}


def test_there_is_a_tiny_twin_of_every_paper_scale_tokenizer():
    rates = {path.stem.removeprefix("large_v3_") for path in CONFIGS if path.stem.startswith("large_v3_")}
    assert rates == {"50hz", "25hz", "12.5hz", "6.25hz"}
    assert {path.stem for path in TINY} >= rates
