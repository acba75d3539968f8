"""The saved views of W&B show what is logged."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from speechlm import wandb_views

pytest.importorskip("wandb_workspaces")
ROOT = Path(__file__).parents[1]


def spec(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    wandb_views.main(["--entity", "team", "--dry-run", *arguments])
    return json.loads(capsys.readouterr().out)


def test_a_workspace_has_a_plot_for_everything_that_is_logged(capsys: pytest.CaptureFixture[str]):
    shown = spec(capsys, "--sets", "heldout", "noisy")
    sections = {one["name"]: one["panels"] for one in shown["spec"]["section"]["panelBankConfig"]["sections"]}
    assert set(sections) >= {*wandb_views.SECTIONS, "sounds and pictures"}
    plots = [panel["config"] for name in wandb_views.SECTIONS for panel in sections[name]]
    assert {plot["xAxis"] for plot in plots} == {"trainer/global_step"}
    patterns = [plot["metricRegex"] for plot in plots if plot.get("useMetricRegex")]
    names = {metric for plot in plots for metric in plot["metrics"]}
    logged_names = """train/loss train/loss_asr train/loss_by_source/web data/tokens_seen/web val/heldout/wer val/text/loss_text
        codebook/usage codebook/used/heldout codebook/perplexity perf/mfu perf/hours_per_hour data/skipped/too_long
        train/skipped_updates train/grad_norm"""
    for logged in logged_names.split():
        assert logged in names or any(re.fullmatch(pattern, logged) for pattern in patterns), logged
    keys = [key for panel in sections["sounds and pictures"] for key in panel["config"]["mediaKeys"]]
    assert {"tokens/heldout", "tokens/noisy", "listen/heldout", "codebook/rank_frequency"} <= set(keys)


def test_without_a_key_nothing_is_saved_and_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match="W&B did not take it"):
        wandb_views.main(["--entity", "team"])
