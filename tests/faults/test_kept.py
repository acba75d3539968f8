"""A suite that was interrupted goes on with what it knows, and never mixes two states of the code."""

from pathlib import Path

import pytest

from tests.faults import kept
from tests.faults.kept import Ended, Kept

FAILED, PASSED = (Ended("tests/a.py::test_b", outcome, 1.0, {"injections": 3}) for outcome in ("failed", "passed"))


def test_what_is_kept_is_known_to_the_next_session(tmp_path: Path):
    first = Kept(tmp_path / "kept")
    first.add(FAILED)
    first.add_bare([(1, "killed", "silent")])
    assert first.processor_seconds is None  # it may yet be killed
    second = Kept(tmp_path / "kept")
    assert second.ended == {FAILED.node: FAILED} and second.bare == [(1, "killed", "silent")] and not second.again
    second.add(PASSED)
    second.close()
    third = Kept(tmp_path / "kept")
    assert third.ended[PASSED.node] == PASSED and third.again == {PASSED.node}
    assert len(third.sessions) == 3 and third.sessions[1] is not None and third.processor_seconds is None
    assert third.seconds >= second.seconds >= first.seconds


def test_all_sessions_that_ended_are_added_up(tmp_path: Path):
    for _ in range(2):
        Kept(tmp_path / "kept").close()
    known = Kept(tmp_path / "kept")
    known.close()
    assert known.processor_seconds == sum(filter(None, known.sessions)) and len(known.sessions) == 3


def test_results_of_other_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Kept(tmp_path / "kept").add(PASSED)
    monkeypatch.setattr(kept, "CODE", ("docs",))
    with pytest.raises(ValueError, match="is of other code"):
        Kept(tmp_path / "kept")


def test_the_state_of_the_code_is_that_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = kept.code_state()
    assert before == kept.code_state()
    new = kept.ROOT / "tests" / "faults" / f"of_no_use_{tmp_path.name}.txt"
    new.write_text("x")
    try:
        assert kept.code_state() != before
    finally:
        new.unlink()
