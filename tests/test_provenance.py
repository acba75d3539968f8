"""What a result was made with, as benchmarks and runs say it."""

import subprocess
from pathlib import Path

import pytest

from speechlm import provenance

ROOT = Path(__file__).parents[1]


def test_a_commit_is_gits_with_a_mark_where_the_tree_differs(monkeypatch: pytest.MonkeyPatch):
    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert provenance.short_commit().rstrip("+") == said[:7]
    monkeypatch.setattr(provenance, "git_state", lambda folder: {"commit": said.strip(), "dirty": True})
    assert provenance.short_commit() == said[:7] + "+"
    monkeypatch.setattr(provenance, "git_state", lambda folder: None)
    assert provenance.short_commit() == ""
