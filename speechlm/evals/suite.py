"""A suite: many tasks in one run, each in phases and shards, and one result.

Work is shared by shard: rank r of w makes every w-th of those that are missing. What a shard's records are depends on
its items alone, so the result is the same at any world size and after any restart. Whoever finds everything there
writes the result.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechlm.evals.items import ItemFile, read_items
from speechlm.evals.parts import MissingPart, Parts
from speechlm.evals.records import RecordFolder, digest, phases_of
from speechlm.evals.task import Example, Metric, Place, Scored, Task
from speechlm.ranks import Rank

SCORING = 1  # version of what scores mean; part of every protocol


@dataclass(frozen=True)
class TaskResult:
    """One task's numbers.

    Attributes:
        protocol: hash of everything about the task that decides its numbers, the model aside.
        settings: what that was made of.
        items: usable items.
        refused: items that were never asked: reason -> ids.
        problems: items that were asked and could not be counted: reason -> ids.
        metrics: the numbers.
        skipped: why the task was not run, "" where it was.
    """

    protocol: str
    settings: dict[str, Any]
    items: int
    refused: dict[str, list[str]]
    problems: dict[str, list[str]]
    metrics: list[Metric]
    skipped: str = ""


@dataclass(frozen=True)
class Evaluation:
    """The result of a suite.

    Attributes:
        schema: version of this form.
        suite: name of the suite.
        protocol: hash over those of all tasks.
        models: what was evaluated: part -> where it is and its hash.
        judges: what judged it: part -> its hash.
        tasks: by name.
        machine: hardware.
        code: commit, None outside of a repository.
    """

    schema: int
    suite: str
    protocol: str
    models: dict[str, dict[str, str]]
    judges: dict[str, str]
    tasks: dict[str, TaskResult]
    machine: dict[str, Any]
    code: dict[str, Any] | None


@dataclass
class Suite:
    """Tasks, the parts of a model, and where their records are.

    Args:
        tasks: by name.
        parts: of the model.
        out: folder of the evaluation.
        rank: this process.
        say: is told what is being done.
    """

    tasks: Mapping[str, Task]
    parts: Parts
    out: Path
    rank: Rank = field(default_factory=Rank)
    say: Callable[[str], None] = lambda line: None
    files: dict[str, ItemFile] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, task in self.tasks.items():
            self.files[name] = read_items(task.items, task.check, getattr(task, "limit", None))

    def answer(self, patience_sec: float = 3600.0) -> bool:
        """Make this process's share of every phase of every task; whether everything is there.

        A task whose model was not given is skipped with the reason; phases wait for the other processes' shards of the
        one before.
        """
        complete = True
        for name, task in self.tasks.items():
            try:
                complete &= self._answer(name, task, patience_sec)
            except MissingPart as error:
                self.skipped[name] = str(error)
                self.say(f"{name}: skipped, {error}")
        return complete

    def retry(self) -> int:
        """Forget shards whose judge did not answer, so that they are asked again; how many."""
        count = 0
        for name, task in self.tasks.items():
            for _, folder, _ in self._phases(name, task):
                count += folder.forget(("unjudged",))
        return count

    def scored(self) -> tuple[dict[str, TaskResult], dict[str, list[Example]]]:
        """Score the records; no model is touched.

        Raises:
            ValueError: records are missing.
        """
        results, examples = {}, {}
        for name, task in self.tasks.items():
            file = self.files[name]
            try:
                phases = list(self._phases(name, task))
            except MissingPart as error:
                self.skipped[name] = str(error)
                results[name] = TaskResult("", {}, len(file.items), file.refused, {}, [], str(error))
                continue
            folder = phases[-1][1]
            if folder.missing() and (name in self.skipped or len(folder.missing()) == len(folder)):
                reason = self.skipped.setdefault(name, "it was never answered")
                results[name] = TaskResult("", {}, len(file.items), file.refused, {}, [], reason)
                continue
            if folder.missing():
                raise ValueError(
                    f"{name}: {len(folder.missing())} of {len(folder)} shards have no records yet in {folder.path}"
                )
            scored = task.score(file.items, folder.read_all(), folder.path / "files")
            results[name] = self._result(name, task, scored, [about for _, _, about in phases])
            examples[name] = scored.examples
        return results, examples

    def _phases(self, name: str, task: Task) -> list[tuple[str, RecordFolder, dict[str, Any]]]:
        return list(phases_of(task, name, self.files[name], self.parts.hash_of, self.out))

    def _answer(self, name: str, task: Task, patience_sec: float) -> bool:
        before: RecordFolder | None = None
        for phase, folder, about in self._phases(name, task):
            folder.begin(about)
            for shard in folder.missing():
                if shard % self.rank.world_size == self.rank.rank:
                    if before is not None and not _await(before, shard, patience_sec):
                        return False
                    self._make(name, task, phase, folder, shard, before)
            before = folder
        return before is None or not before.missing()

    def _make(
        self, name: str, task: Task, phase: str, folder: RecordFolder, shard: int, before: RecordFolder | None
    ) -> None:
        self.say(f"{name}: {phase}, shard {shard + 1} of {len(folder)}")
        known = before.read(shard) if before else []
        if before:
            _carry_files(before, folder, known)
        place = Place(self.files[name].path.parent, folder.path / "files")
        items = folder.items_of(shard)
        asked = [n for n in range(len(items)) if not (known and known[n].get("problem"))]
        made = task.answer(
            phase, [items[n] for n in asked], [known[n] for n in asked] if known else [], self.parts, place
        )
        records = dict(zip(asked, made, strict=True))
        folder.write(shard, [records.get(n) or _without_id(known[n]) for n in range(len(items))])

    def _result(self, name: str, task: Task, scored: Scored, abouts: list[dict[str, Any]]) -> TaskResult:
        judged = {p: h for about in abouts for p, h in about["parts"].items() if is_judge(p)}
        settings = {
            "task": type(task).__name__,
            "items": abouts[0]["items"],
            "answered": {about["phase"]: about["settings"] for about in abouts},
            "scored": task.scoring(),
            "judges": judged,
            "scoring": SCORING,
        }
        problems = {reason: ids for reason, ids in scored.problems.items() if ids}
        file = self.files[name]
        return TaskResult(digest(settings), settings, len(file.items), file.refused, problems, scored.metrics)


def is_judge(part: str) -> bool:
    """Whether a part judges, and so belongs to the protocol and not to the model."""
    return part.startswith(("listener ", "quality ", "judge"))


def _await(before: RecordFolder, shard: int, patience_sec: float) -> bool:
    """Wait for a shard of the phase before, which is this process's own unless the number of processes changed."""
    end = time.monotonic() + patience_sec
    while shard in before.missing():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _carry_files(before: RecordFolder, folder: RecordFolder, records: list[dict[str, Any]]) -> None:
    """Sounds of the phase before that its records name, as links: the same file in both places."""
    for record in records:
        for name in _names(record):
            source, target = before.path / "files" / name, folder.path / "files" / name
            if source.exists() and not target.exists():
                os.link(source, target)


def _names(record: dict[str, Any]) -> list[str]:
    return [v for v in [record.get("sound"), *(m.get("sound") for m in record.values() if isinstance(m, dict))] if v]


def _without_id(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "id"}
