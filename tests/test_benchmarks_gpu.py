"""The script that measures a GPU runs to its end without one, at tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("section", ["ceilings", "attention", "head", "tokenize"])
def test_a_section_gives_rows_of_the_table(section: str):
    rows = gpu.SECTIONS[section][1]("cpu")
    assert len(rows) >= (1 if section == "tokenize" else 2) and all(row["value"] > 0 for row in rows)
    shown = gpu.table(json.loads(json.dumps(rows)), "header")
    assert shown.count("\n| ") == len(rows) + 1
    if section == "tokenize":
        assert "0.00% of the tokens are others than alone" in rows[0]["note"]
    if section == "attention":
        errors = [float(row["note"].split()[-1]) for row in rows]
        assert errors[0] == 0 and max(errors) < 1e-5


def test_the_ratio_to_the_trainer_needs_both_speeds():
    ours, theirs = gpu.row(gpu.OURS, 40.0, "tokens/s"), gpu.row(gpu.TRAINER, 16.0, "tokens/s", note="9 GiB")
    (both,) = gpu.against_trainer([ours, theirs])
    assert both["ratio"] == 2.5 and both["note"] == "9 GiB"
    assert gpu.against_trainer([ours]) == gpu.against_trainer([ours, theirs | {"value": 0.0}]) == []


def test_a_section_that_fails_is_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "TINY", {"decode": "no_such_benchmark.py"})
    (row,) = gpu.section("decode", "cpu", 60, tmp_path)
    assert row["note"].startswith("failed:") and row["value"] == 0
    assert gpu.section("head", "cpu", 3, tmp_path)[0]["note"] == "skipped: no time left"


@pytest.mark.slow
def test_the_whole_script_runs_to_its_end(tmp_path: Path):
    out = tmp_path / "table.md"
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--seconds", "1500", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, out.read_text() + done.stderr
    for name in ("9B", "1.5B", "Hugging Face's Trainer |", "speech tokens", "generate", "decode", "corpus"):
        assert name in out.read_text()
