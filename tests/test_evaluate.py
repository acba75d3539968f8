"""One command, many metrics: planted models get the scores they must have, whatever is interrupted, shared or scored again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import soundfile
from rich.console import Console

from speechlm import evaluate
from speechlm.conservation import Unaccounted
from speechlm.evals.bootstrap import percent
from speechlm.evals.items import Unusable, read_items, write_items
from speechlm.evals.judge import Judge
from speechlm.evals.pairs import Pairs
from speechlm.evals.planted import Planted, codes_in, codes_of, sound_of, text_of
from speechlm.evals.suite import Evaluation, Suite
from speechlm.evals.task import Metric
from speechlm.ranks import Rank

ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs" / "evaluate" / "tiny.yaml"
PAIRED = ("swuggy", "sblimp", "salmon", "story_cloze", "topic_story_cloze")


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def run(out: Path, *args: str) -> None:
    evaluate.main(["--config", str(TINY), "--out", str(out), *args])


def numbers(out: Path) -> dict[str, dict[str, Any]]:
    """Task -> metric -> its fields."""
    tasks = json.loads((out / "evaluation.json").read_text())["tasks"]
    return {name: {m["name"]: m for m in task["metrics"]} for name, task in tasks.items()}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny suite of a planted model, run once."""
    done: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in done:
            out = tmp_path_factory.mktemp(kind)
            run(out, "--model", f"planted={kind}")
            done[kind] = out
        return done[kind]

    return of


# --- known answers


def test_an_oracle_gets_everything_right(planted: Callable[[str], Path]) -> None:
    found = numbers(planted("oracle"))
    for task in PAIRED:
        assert {m["value"] for m in found[task].values()} == {100.0}
    assert found["questions"]["accuracy S->T"]["value"] == found["questions"]["accuracy S->S"]["value"] == 100.0
    assert found["general_qa"]["General QA (1-10)"]["value"] == found["knowledge"]["Knowledge (0-10)"]["value"] == 10.0
    for task in ("tokenizer", "resynthesis", "text_to_token", "base_asr", "base_tts"):
        assert found[task]["WER en"]["value"] == 0.0
    assert found["text_to_token"]["token error rate"]["value"] == 0.0
    for whose in ("tokens read,", "recordings' tokens read,"):
        assert found["text_to_token"][f"{whose} WER en clipped"]["value"] == 0.0
    assert found["tokenizer"]["bitrate"]["value"] == pytest.approx(25 * np.log2(38))
    assert found["resynthesis"]["stoi"]["value"] == 1.0


def test_an_anti_oracle_gets_everything_wrong(planted: Callable[[str], Path]) -> None:
    found = numbers(planted("anti_oracle"))
    assert found["text_to_token"]["tokens read, WER en clipped"]["value"] == 100.0
    assert (
        found["text_to_token"]["recordings' tokens read, WER en clipped"]["value"] == 0.0
    )  # nobody's model has a part in them
    for task in PAIRED:
        assert {m["value"] for m in found[task].values()} == {0.0}
    assert found["questions"]["accuracy S->T"]["value"] == found["knowledge"]["Knowledge (0-10)"]["value"] == 0.0
    assert found["general_qa"]["General QA (1-10)"]["value"] == 1.0
    for task in (
        "text_to_token",
        "base_asr",
        "base_tts",
    ):  # "zzz" for every sentence: one substitution, all else deleted
        assert found[task]["WER en"]["value"] == 100.0


def lengths(task: str, mode: str, span: str) -> list[tuple[int, int]]:
    """Scored ids of the right and the wrong side of every pair, counted from the texts."""
    pairs = []
    for item in read_items(ROOT / "assets" / "eval-tiny" / f"{task}.jsonl").items:
        context = item.get("context", {}).get("text", "") if span == "whole" else ""
        blank = int("context" in item and mode[-1] == "T")  # a text goes on behind a blank
        sides = [len(context) + blank + len(item[side]["text"]) for side in ("positive", "negative")]
        pairs.append((sides[0], sides[1]))
    return pairs


def share(pairs: list[tuple[int, int]], longer: bool) -> float:
    """Percent of pairs whose right side is longer, or shorter; the half where both are equal."""
    right = [0.5 if p == n else float((p > n) == longer) for p, n in pairs]
    return 100 * sum(right) / len(right)


@pytest.mark.parametrize("kind", ["uniform", "length_biased"])
@pytest.mark.parametrize("task", PAIRED)
def test_ties_and_lengths_score_exactly_what_they_must(planted: Callable[[str], Path], kind: str, task: str) -> None:
    found = {name: m["value"] for name, m in numbers(planted(kind))[task].items() if name.startswith("accuracy [")}
    assert len(found) == (32 if "cloze" in task else 4)
    for name, value in found.items():
        mode, span, norm, _ = name.removeprefix("accuracy [").rstrip("]").split(", ")
        pairs = lengths(task, mode, span)
        if norm == "sum":
            assert value == share(pairs, longer=False), name
        else:
            assert value == (50.0 if kind == "uniform" else share(pairs, longer=True)), name


def test_what_the_lengths_of_the_tiny_words_are() -> None:
    assert share(lengths("swuggy", "S->S", "ending"), longer=False) == 37.5  # shorter, equal, longer, longer


# --- flags


PLAIN = {"modes": ["S->S"], "per_token": [True], "masked": [False], "spans": ["ending"]}


def scored(record: dict[str, Any], **flags: Any) -> dict[str, float]:
    task = Pairs("items", **{**PLAIN, **flags})
    item = {"id": "a", "context": {"text": "c"}, "positive": {"text": "p"}, "negative": {"text": "n"}}
    return {m.name: m.value for m in task.score([item], [{"id": "a", **record}], Path()).metrics}


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [("per_token", [False], 0.0), ("masked", [True], 0.0), ("spans", ["whole"], 0.0), ("modes", ["S->T"], 0.0)],
)
def test_each_flag_changes_what_it_should_and_nothing_else(flag: str, value: Any, expected: float) -> None:
    """nll, masked nll, count: per token 1.0 < 1.5, in sum 10 > 3; masked 9 / 10 > 0.5; the whole, and the text, the other way."""
    right = {"ending": [10.0, 9.0, 10], "whole": [30.0, 9.0, 10]}
    wrong = {"ending": [3.0, 1.0, 2], "whole": [4.0, 1.0, 2]}
    record = {"S->S": {"positive": right, "negative": wrong}, "S->T": {"positive": wrong, "negative": right}}
    assert list(scored(record).values()) == [100.0]
    assert list(scored(record, **{flag: value}).values()) == [expected]
    both = scored(record, **{flag: [*PLAIN[flag], *value]})
    assert list(both.values()) == [100.0, expected]  # asked together they are the same two numbers


def test_groups_are_told_apart_in_every_mode() -> None:
    right, wrong = {"ending": [1.0, 1.0, 1]}, {"ending": [2.0, 2.0, 1]}
    sides = {"positive": {"text": "p"}, "negative": {"text": "n"}, "context": {"text": "c"}}
    items = [{"id": name, "group": name, **sides} for name in ("x", "y")]
    records: list[dict[str, Any]] = [
        {"S->S": {"positive": a, "negative": b}, "T->S": {"positive": c, "negative": d}}
        for a, b, c, d in ((right, wrong, wrong, right), (right, wrong, right, right))
    ]
    task = Pairs("items", modes=["S->S", "T->S"], per_token=[True, False], masked=[False], spans=["ending"])
    found = [(m.name, m.value) for m in task.score(items, records, Path()).metrics]
    assert found == [
        ("accuracy [S->S, ending, per token, unmasked]", 100.0), ("accuracy of x [S->S]", 100.0),
        ("accuracy of y [S->S]", 100.0), ("accuracy [S->S, ending, sum, unmasked]", 100.0),
        ("accuracy [T->S, ending, per token, unmasked]", 25.0), ("accuracy of x [T->S]", 0.0),
        ("accuracy of y [T->S]", 50.0), ("accuracy [T->S, ending, sum, unmasked]", 25.0),
    ]  # fmt: skip
    alone = Pairs("items", **PLAIN).score(items, records, Path()).metrics
    assert [m.name for m in alone][1:] == ["accuracy of x", "accuracy of y"]


@pytest.mark.parametrize(("within", "value"), [(0.0, 0.0), (1e-6, 50.0)])
def test_rounding_decides_no_pair(within: float, value: float) -> None:
    side = {"ending": [10.0, 10.0, 10]}
    noisy = {"ending": [10.000001, 10.0, 10]}
    record = {"S->S": {"positive": noisy, "negative": side}}
    assert list(scored(record, tie_within=within).values()) == [value]


# --- the run


def records(out: Path) -> dict[str, str]:
    folder = out / "records"
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("shard-*.jsonl"))}


def result(out: Path) -> dict[str, Any]:
    content = json.loads((out / "evaluation.json").read_text())
    return {key: content[key] for key in ("tasks", "protocol", "models", "judges")}


SOME = ("--only", "swuggy", "questions", "resynthesis")


def test_a_run_that_is_killed_anywhere_ends_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", "--model", "planted=oracle", *SOME)
    for name in ("likelihoods", "sound", "say"):
        calls = {"left": 1}
        plain = getattr(Planted, name)

        def dying(self: Planted, *args: Any, plain: Any = plain, calls: Any = calls, **kw: Any) -> Any:
            calls["left"] -= 1
            if calls["left"] < 0:
                raise KeyboardInterrupt
            return plain(self, *args, **kw)

        with monkeypatch.context() as patch:
            patch.setattr(Planted, name, dying)
            try:
                run(tmp_path / "killed", "--model", "planted=oracle", *SOME)
            except KeyboardInterrupt:
                continue
    run(tmp_path / "killed", "--model", "planted=oracle", *SOME)
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


def test_three_processes_make_the_result_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "one", "--model", "planted=oracle", *SOME)
    for place, rank in enumerate((2, 0, 1)):  # the last to come finds everything there
        run(tmp_path / "three", "--model", "planted=oracle", *SOME, "--rank", str(rank), "--world_size", "3")
        if place < 2:
            assert "is not complete" in capsys.readouterr().out
            assert not (tmp_path / "three" / "evaluation.json").exists()
    assert records(tmp_path / "three") == records(tmp_path / "one")
    assert result(tmp_path / "three") == result(tmp_path / "one")


def test_records_are_scored_again_under_other_flags_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, "--model", "planted=oracle", *SOME)
    before, kept = result(tmp_path), records(tmp_path)
    monkeypatch.setattr(evaluate, "Planted", None)
    monkeypatch.setattr(evaluate, "ModelParts", None)
    run(tmp_path, "--rescore", "true", *SOME)
    assert result(tmp_path) == before
    run(tmp_path, "--rescore", "true", *SOME, "--tasks.swuggy.init_args.per_token", "[true]")
    after = result(tmp_path)
    assert len(after["tasks"]["swuggy"]["metrics"]) == len(before["tasks"]["swuggy"]["metrics"]) - 2
    assert after["tasks"]["questions"] == before["tasks"]["questions"]
    assert after["protocol"] != before["protocol"]
    assert after["tasks"]["swuggy"]["protocol"] != before["tasks"]["swuggy"]["protocol"]
    assert records(tmp_path) == kept


def test_the_protocol_is_the_suites_and_not_the_models(planted: Callable[[str], Path]) -> None:
    one, other = (result(planted(kind)) for kind in ("oracle", "uniform"))
    assert one["models"] != other["models"]
    for name in ("swuggy", "story_cloze", "base_asr", "questions"):
        same = {k: v for k, v in one["tasks"][name]["settings"].items() if k != "judges"}
        assert same == {k: v for k, v in other["tasks"][name]["settings"].items() if k != "judges"}
    assert one["tasks"]["swuggy"]["protocol"] == other["tasks"]["swuggy"]["protocol"]


def test_the_result_is_what_its_schema_says_and_people_can_read_it(planted: Callable[[str], Path]) -> None:
    out = planted("oracle")
    schema, content = (json.loads((out / f"evaluation{end}.json").read_text()) for end in (".schema", ""))
    jsonschema.validate(content, schema)
    content["tasks"]["swuggy"]["metrics"][0]["value"] = "high"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)
    text, html = (out / "evaluation.md").read_text(), (out / "evaluation.html").read_text()
    assert "| swuggy | accuracy [S->S, ending, per token, unmasked] ↑ | 100 % | [100, 100] | 4 |" in text
    assert html.count("<audio") >= 8 and "william shakespeare" in html.lower()


def test_a_result_with_a_number_that_is_none_is_never_written(tmp_path: Path) -> None:
    broken = Evaluation(1, "x", "p", {}, {}, {}, {"nan": float("nan")}, None)
    with pytest.raises(ValueError, match=r"[Oo]ut of range"):
        evaluate.write(tmp_path, broken, "")
    assert not (tmp_path / "evaluation.json").exists()


def test_a_task_whose_part_was_not_given_says_so_and_the_others_run(tmp_path: Path) -> None:
    run(tmp_path, "--only", "swuggy", "text_retention", "--model", "planted=oracle")
    tasks = result(tmp_path)["tasks"]
    assert "lm-eval" in tasks["text_retention"]["skipped"] or "planted model" in tasks["text_retention"]["skipped"]
    assert tasks["swuggy"]["metrics"] and not tasks["swuggy"]["skipped"]
    with pytest.raises(SystemExit, match="--only names nothing_such"):
        run(tmp_path, "--only", "nothing_such")


# --- bad input


def test_every_item_that_can_not_be_used_is_counted_by_name(tmp_path: Path) -> None:
    good = {"text": "good", "tokens": codes_of("good")}
    lines = [
        {"id": "fine", "positive": good, "negative": {**good, "tokens": codes_of("bad")}},
        {"id": "twice", "positive": good, "negative": good},
        {"id": "twice", "positive": good, "negative": good},
        {"id": "gone", "positive": {"audio": "nowhere.wav"}, "negative": good},
        {"id": "half", "positive": good},
        {"positive": good, "negative": good},
        {"id": "silent", "positive": good, "negative": {"tokens": []}},
        {"id": "foreign", "positive": good, "negative": {**good, "made_by": "another"}},
        {"id": "noise", "positive": {"audio": "noise.wav"}, "negative": good},
        {"id": "nan", "positive": {"audio": "nan.wav"}, "negative": good},
    ]
    (tmp_path / "noise.wav").write_bytes(b"this is no recording")
    soundfile.write(tmp_path / "nan.wav", np.full(6400, np.nan, np.float32), 16_000, subtype="FLOAT")
    write_items(tmp_path / "items.jsonl", lines)
    with open(tmp_path / "items.jsonl", "a") as file:
        file.write("{not json\n")
    task = Pairs(str(tmp_path / "items.jsonl"))
    suite = Suite({"pairs": task}, Planted("uniform", {"pairs": task}), tmp_path / "out")
    assert suite.answer()
    found = suite.scored()[0]["pairs"]
    assert found.refused == {
        "duplicate id": ["twice", "twice"], "missing audio": ["gone"], "no negative in a modality that is asked": ["half"],
        "no id": ["line 6"], "not a JSON object": ["line 11"],
    }  # fmt: skip
    assert found.problems == {
        "no speech tokens": ["silent"], "tokens of another tokenizer": ["foreign"], "unreadable audio": ["noise"],
        "audio is not finite": ["nan"],
    }  # fmt: skip
    assert {metric.count for metric in found.metrics} == {1}
    console = Console(record=True, width=500)
    evaluate.account(suite, {"pairs": found}, console)
    assert "11 lines in = 5 asked + 6 not asked (2 duplicate id" in (said := console.export_text())
    assert "5 items asked = 1 counted + 4 not counted" in said
    silent = replace(found, problems={r: ids for r, ids in found.problems.items() if r != "no speech tokens"})
    with pytest.raises(Unaccounted, match=r"5 items asked = 1 counted .* leaves 1 unexplained"):
        evaluate.account(suite, {"pairs": silent}, console)
    suite.files["pairs"].refused.pop("no id")
    with pytest.raises(Unaccounted, match=r"11 lines in = 5 asked .* leaves 1 unexplained"):
        evaluate.account(suite, {"pairs": found}, console)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([0.0, 0.0, 0], "empty score"),
        ([float("nan"), 1.0, 3], "score is not finite"),
        ([1.0, float("inf"), 3], "score is not finite"),
    ],
)
def test_a_score_that_is_none_is_named_and_never_counted(bad: list[float], reason: str) -> None:
    fine = {"ending": [1.0, 1.0, 1]}
    rows = [
        {"S->S": {"positive": fine, "negative": {"ending": [2.0, 2.0, 1]}}},
        {"S->S": {"positive": fine, "negative": {"ending": bad}}},
    ]
    items = [{"id": name, "positive": {}, "negative": {}} for name in ("fine", "bad")]
    found = Pairs("items", spans=["ending"]).score(items, rows, Path())
    assert found.problems[reason] == ["bad"]
    assert {(m.value, m.count) for m in found.metrics} == {(100.0, 1)}  # under every flag the same pairs are counted


def test_a_judge_that_fails_is_counted_apart_and_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["[[7]]", Unusable("judge timed out"), "I like it"])

    def moody(self: Planted, prompt: str) -> str:
        said = next(answers)
        if isinstance(said, Unusable):
            raise said
        return said

    with monkeypatch.context() as patch:
        patch.setattr(Planted, "ask", moody)
        run(tmp_path, "--model", "planted=oracle", "--only", "general_qa")
    task = result(tmp_path)["tasks"]["general_qa"]
    score = next(m for m in task["metrics"] if m["name"].startswith("General QA"))
    assert score["value"] == 7.0 and score["count"] == 1
    assert task["problems"] == {"judge timed out": ["chat-1"], "judge gave no rating": ["chat-2"]}
    run(tmp_path, "--model", "planted=oracle", "--only", "general_qa")
    assert result(tmp_path)["tasks"]["general_qa"]["problems"]  # what is there stays
    run(tmp_path, "--model", "planted=oracle", "--only", "general_qa", "--retry", "true")
    assert result(tmp_path)["tasks"]["general_qa"]["problems"] == {}


# --- parts


def test_planted_speech_is_exact() -> None:
    text = "the quick brown fox jumps over 13 lazy dogs'"
    assert text_of(codes_in(sound_of(codes_of(text)))) == text


def test_an_interval_holds_the_value_and_shrinks_with_items() -> None:
    few, many = (percent("x", [0.0, 1.0] * n) for n in (10, 1000))
    for metric in (few, many):
        assert isinstance(metric, Metric) and metric.low is not None and metric.high is not None
        assert metric.low <= metric.value <= metric.high and metric.value == 50.0
    assert many.high - many.low == pytest.approx((few.high - few.low) / 10, rel=0.25)  # type: ignore[operator]
    with pytest.raises(ValueError, match="not finite"):
        percent("x", [float("nan")])


def test_ranks_beyond_the_shards_have_nothing_to_do(tmp_path: Path) -> None:
    task = Pairs("assets/eval-tiny/swuggy.jsonl", shard=4)
    suite = Suite({"x": task}, Planted("oracle", {"x": task}), tmp_path, Rank(5, 6))
    assert not suite.answer() and not records(tmp_path)


def test_a_judge_needs_an_address() -> None:
    with pytest.raises(ValueError, match="http"):
        Judge(url="file:///etc/passwd")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "evaluate").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_parses_and_an_unknown_key_is_named(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = evaluate.build_parser()
    tasks = parser.parse_args(["--config", str(path)]).tasks
    assert tasks
    with pytest.raises(SystemExit):
        parser.parse_args(["--config", str(path), f"--tasks.{next(iter(tasks))}.init_args.no_such_key", "1"])
    assert "no_such_key" in capsys.readouterr().err
