"""The result of a suite as one table, for the terminal, for Markdown, and as a page with sounds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechlm.evals.hearing import read_sound
from speechlm.evals.report_page import Page, card, facts, plain, player, words
from speechlm.evals.suite import Evaluation, TaskResult
from speechlm.evals.task import Example, Metric

HEADER = ["task", "metric", "value", "95 % interval", "items"]
MAX_SECONDS = 30.0  # of a sound on the page
ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


def rows(evaluation: Evaluation, only: Sequence[str] = ()) -> list[list[str]]:
    """One row per metric, and one per task that was not run."""
    made = []
    for name, task in evaluation.tasks.items():
        if task.skipped:
            made.append([name, f"not run: {task.skipped}", "", "", ""])
        made += [[name, *_cells(metric)] for metric in task.metrics if not only or metric.name in only]
    return made


def uncounted(evaluation: Evaluation) -> list[list[str]]:
    """Task, reason, number and the first ids of what no metric counts."""
    made = []
    for name, task in evaluation.tasks.items():
        for when, reasons in (("not asked", task.refused), ("not counted", task.problems)):
            made += [
                [name, f"{when}: {reason}", str(len(ids)), _listed(ids)] for reason, ids in sorted(reasons.items())
            ]
    return made


def markdown(evaluation: Evaluation) -> str:
    """Tables that a README takes."""
    models = ", ".join(f"{part} `{about['at']}` ({about['hash']})" for part, about in evaluation.models.items())
    text = [
        f"# {evaluation.suite}",
        "",
        f"Protocol `{evaluation.protocol}`; {models}.",
        "",
        *_table(HEADER, rows(evaluation)),
    ]
    lost = uncounted(evaluation)
    if lost:
        text += ["", "Not in the numbers:", "", *_table(["task", "reason", "items", "which"], lost)]
    protocols = [[name, f"`{task.protocol}`"] for name, task in evaluation.tasks.items() if task.protocol]
    return "\n".join([*text, "", *_table(["task", "protocol"], protocols)]) + "\n"


def page(evaluation: Evaluation, examples: Mapping[str, list[Example]]) -> str:
    """HTML that needs nothing else."""
    models = ", ".join(f"{part}: {about['at']}" for part, about in evaluation.models.items())
    made = Page(evaluation.suite, f"{models} · protocol {evaluation.protocol}")
    made.heading("Results")
    made.table(HEADER, rows(evaluation))
    lost = uncounted(evaluation)
    if lost:
        made.heading("Not in the numbers", "Items that could not be asked or counted, by reason.")
        made.table(["task", "reason", "items", "which"], lost)
    for name, shown in examples.items():
        if shown:
            made.heading(name, _about(evaluation.tasks[name]))
            made.cards([_card(example) for example in shown])
    return made.render()


def _cells(metric: Metric) -> list[str]:
    interval = "" if metric.low is None or metric.high is None else f"[{_number(metric.low)}, {_number(metric.high)}]"
    unit = f" {metric.unit}" if metric.unit else ""
    return [metric.name + ARROWS[metric.better], _number(metric.value) + unit, interval, str(metric.count)]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _listed(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")


def _table(header: list[str], body: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines]


def _about(task: TaskResult) -> str:
    return f"{task.items} items, protocol {task.protocol}"


def _card(example: Example) -> str:
    sounds = [part for caption, path in example.sounds.items() for part in _sound(caption, path)]
    return card(words(example.id), *sounds, facts([(name, plain(text)) for name, text in example.facts.items()]))


def _sound(caption: str, path: Path) -> list[str]:
    if not path.is_file():
        return [words(f"{caption}: no file")]
    audio, rate = read_sound(str(path))
    mono: Any = audio if audio.ndim == 1 else audio[:, 0]
    return [words(caption), player(mono[: int(MAX_SECONDS * rate)], rate)]
