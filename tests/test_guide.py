"""The way through all stages: plans, steps that are skipped when done, and what the page says."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from speechlm.guide import sounds
from speechlm.guide.learnt import learnt, measures
from speechlm.guide.making import fresh, max_time, noted
from speechlm.guide.page import gain
from speechlm.guide.plan import load_plan
from speechlm.guide.record import Record
from speechlm.guide.step import Step
from speechlm.guide.steps import Tour

ROOT = Path(__file__).parents[1]
PLANS = sorted((ROOT / "configs").glob("*/plan.yaml"))


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.parent.name)
def test_a_plan_leads_through_the_same_steps_and_names_configs_that_exist(path: Path, tmp_path: Path):
    plan = load_plan(path)
    steps = Tour(plan, tmp_path).steps()
    first = Tour(load_plan(PLANS[0]), tmp_path).steps()
    ways = [[verb for verb, _ in itertools.groupby(way, lambda step: step.verb)] for way in (steps, first)]
    assert ways[0] == ways[1] and len(ways[0]) > 15
    configs = [step.words[step.words.index("--config") + 1] for step in steps if "--config" in step.words]
    assert len(configs) > 10 and all((ROOT / config).is_file() for config in configs)
    runs = [step.run for step in steps if step.run]
    assert len(runs) == len(set(runs)) and set(plan.hours) <= set(runs)


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: x", "lead"), ("name: x\nwrong: 1", "wrong"), ("a: [", "plan"), ("name: {}", "plan")],
)
def test_a_plan_that_is_wrong_is_refused_by_name(tmp_path: Path, text: str, message: str):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_plan(tmp_path / "plan.yaml")


def test_a_plan_that_names_parts_that_no_corpus_has_is_refused(tmp_path: Path):
    text = (ROOT / "configs" / "tour" / "plan.yaml").read_text(encoding="utf-8")
    for old, new, message in (
        ("chats: {train:", "chats: {tran:", "chats must name train and heldout"),
        ("tokenizer: heldout,", "tokenizer: test,", "tasks are asked train or heldout"),
    ):
        assert old in text
        (tmp_path / "plan.yaml").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=message):
            load_plan(tmp_path / "plan.yaml")


def test_the_evaluation_is_asked_what_the_plan_says(tmp_path: Path):
    plan = load_plan(ROOT / "configs" / "tour" / "plan.yaml")
    for short in (False, True):
        (step,) = (one for one in Tour(plan, tmp_path, short).steps() if one.verb == "speechlm.evaluate")
        asked = {word: value for word, value in itertools.pairwise(step.words) if word.endswith(".items")}
        suite = yaml.safe_load((ROOT / plan.evaluate).read_text(encoding="utf-8"))
        assert set(plan.tasks) == set(suite["tasks"])
        assert asked == {
            f"--tasks.{task}.init_args.items": str(tmp_path / "eval" / f"{part}.jsonl")
            for task, part in plan.tasks.items()
            if part
        }
        assert sum(word.endswith(".limit") for word in step.words) == short * len(plan.tasks)


def test_every_training_of_the_tour_but_the_tokenizers_is_measured_before_its_first_step():
    plan = load_plan(ROOT / "configs" / "tour" / "plan.yaml")
    for config in (plan.text_to_token, plan.speech_lm, plan.chat, plan.flow_decoder, plan.vocoder):
        callbacks = yaml.safe_load((ROOT / config).read_text(encoding="utf-8"))["trainer"]["callbacks"]
        assert {"class_path": "callbacks.validate_first.ValidateFirst"} in callbacks, config


def test_recordings_and_questions_of_the_tour_ship_with_the_code():
    plan = load_plan(ROOT / "configs" / "tour" / "plan.yaml")
    paths = [*plan.recordings.values(), *plan.questions.values(), *plan.chats.values()]
    assert len(paths) > 5 and all((ROOT / path).is_file() for path in paths)


def test_the_page_shows_what_was_heard_asked_and_measured(tmp_path: Path):
    plan = load_plan(ROOT / "configs" / "tour" / "plan.yaml")
    (tmp_path / "sounds").mkdir()
    tone = 0.1 * np.sin(np.arange(16_000) / 20).astype(np.float32)
    soundfile.write(tmp_path / "sounds" / "heldout_1.flac", tone, 16_000)
    soundfile.write(tmp_path / "sounds" / "answer_eight.wav", tone, 16_000)
    (tmp_path / "sounds" / "answer_eight.txt").write_text("please hold <b>\nanswer.wav: 1.0 s, stop\n")
    assert len(sounds.recordings(plan, tmp_path)) == 1
    cards = sounds.answers(plan, tmp_path)
    assert len(cards) == len(plan.questions) and "please hold &lt;b&gt;" in cards[0] and "1.0 s" not in cards[0]
    assert cards[0].count("<audio") == 2 and "no sound" in cards[1]
    assert sounds.measured(tmp_path) == [] and sounds.spoken_texts(tmp_path) == []
    metric = {"name": "WER", "value": 12.34, "low": 10.0, "high": None, "count": 7, "unit": "%", "better": "lower"}
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "evaluation.json").write_text(json.dumps({"tasks": {"t": {"metrics": [metric]}}}))
    assert sounds.measured(tmp_path) == [["t", "WER", "12.3 %", "", "7"]]


def test_what_an_interrupted_command_left_is_made_anew_and_output_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    made = tmp_path / "model" / "lm"
    made.mkdir(parents=True)
    (made / "half").write_text("x")
    assert fresh(lambda words: made.parent.exists(), made.parent)([]) is False
    assert noted(lambda words: print(*words), tmp_path / "a" / "said.txt")(["hello", "you"]) is None
    assert (tmp_path / "a" / "said.txt").read_text() == capsys.readouterr().out == "hello you\n"


def test_a_done_step_is_known_again_and_a_changed_one_is_not(tmp_path: Path):
    config = tmp_path / "c.yaml"
    config.write_text("rate: 1")
    step = Step("a", "speechlm.fit", ("--config", str(config), "--out", "x"), print)
    Record(tmp_path / "tour.json").done(step, 1.26)
    again = Record(tmp_path / "tour.json")
    assert again.is_done(step) and again.seconds(step) == 1.3
    assert not again.is_done(Step("a", "speechlm.fit", ("--config", str(config), "--out", "y"), print))
    config.write_text("rate: 2")
    assert not again.is_done(step) and again.seconds(step) == 0.0


def test_a_step_that_changed_is_not_done_under_those_that_were_made_from_it(tmp_path: Path):
    first, second, third = (Step(name, "speechlm.pack", ("--out", name), print) for name in ("a", "b", "c"))
    record = Record(tmp_path / "tour.json")
    for step in (first, second):
        record.done(step, 1.0)
    record.require_order([first, second, third])  # interrupted, it goes on
    other = Step("a", "speechlm.pack", ("--out", "a", "--more"), print)
    with pytest.raises(ValueError, match=r"step 1, 'a', is to be run, but steps 2 were .* Take another --out"):
        record.require_order([other, second, third])


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
