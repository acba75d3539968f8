"""The way through all stages: plans, steps that are skipped when done, and what the page says."""

import json
from pathlib import Path

import pytest

from speechlm.guide.learnt import learnt, measures
from speechlm.guide.page import gain
from speechlm.guide.plan import load_plan
from speechlm.guide.record import Record
from speechlm.guide.step import Step
from speechlm.guide.steps import Tour, max_time

ROOT = Path(__file__).parents[1]
PLANS = sorted((ROOT / "configs").glob("*/plan.yaml"))


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.parent.name)
def test_a_plan_leads_through_the_same_steps_and_names_configs_that_exist(path: Path, tmp_path: Path):
    plan = load_plan(path)
    steps = Tour(plan, tmp_path).steps()
    assert [step.verb for step in steps] == [step.verb for step in Tour(load_plan(PLANS[0]), tmp_path).steps()]
    configs = [step.words[step.words.index("--config") + 1] for step in steps if "--config" in step.words]
    assert len(configs) > 5 and all((ROOT / config).is_file() for config in configs)
    runs = [step.run for step in steps if step.run]
    assert len(runs) == len(set(runs)) and set(plan.hours) <= set(runs)


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: x", "cuts"), ("name: x\nwrong: 1", "wrong"), ("a: [", "plan"), ("name: {}", "plan")],
)
def test_a_plan_that_is_wrong_is_refused_by_name(tmp_path: Path, text: str, message: str):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_plan(tmp_path / "plan.yaml")


def test_a_done_step_is_known_again_and_a_changed_one_is_not(tmp_path: Path):
    step = Step("a", "speechlm.pack", ("--out", "x"), print)
    Record(tmp_path / "tour.json").done(step, 1.26)
    again = Record(tmp_path / "tour.json")
    assert again.is_done(step) and again.seconds[step.command] == 1.3
    assert not again.is_done(Step("a", "speechlm.pack", ("--out", "y"), print))


def test_a_short_tour_does_not_pass_for_a_whole_one(tmp_path: Path):
    plan = load_plan(PLANS[0])
    whole, short = (Tour(plan, tmp_path, short).steps() for short in (False, True))
    fits = [n for n, step in enumerate(whole) if step.verb == "speechlm.fit"]
    assert fits and all(whole[n].command != short[n].command for n in fits)


def test_what_was_learnt_is_the_first_and_the_last_value(tmp_path: Path):
    rows = [
        {"step": 1, "val/a/loss": 3.0},
        {"step": 2, "train/loss": 9.0},
        {"step": 3, "val/a/loss": 1.5, "val/a/wer": 0.5},
    ]
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert learnt(tmp_path / "r", "val/a/loss").values == [3.0, 1.5]
    assert measures(tmp_path / "r") == ["val/a/loss", "val/a/wer"]
    assert gain(tmp_path, Step("", "speechlm.fit", (), print, run="r")) == "val/a/loss 3 → 1.5"
    assert gain(tmp_path, Step("", "speechlm.pack", (), print)) == ""
    with pytest.raises(ValueError, match="val/b/loss"):
        learnt(tmp_path / "r", "val/b/loss")


@pytest.mark.parametrize(("hours", "written"), [(8, "00:08:00:00"), (0.5, "00:00:30:00"), (30.01, "01:06:00:36")])
def test_hours_are_written_as_the_trainer_reads_them(hours: float, written: str):
    assert max_time(hours) == written
