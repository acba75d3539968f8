"""Records of items on the disk: a file per shard, whole or not there, in a folder named by everything that they depend on.

So whatever was interrupted goes on with the shards that are missing, any number of processes share them, and records that were
made with another model, prompt or set of items lie beside each other and are never mixed up.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechlm.evals.items import Item, ItemFile
from speechlm.evals.task import Record, Task
from speechlm.files import write_text_atomic


@dataclass(frozen=True)
class RecordFolder:
    """Records of one phase.

    Attributes:
        path: the folder; files that records name are in its `files`.
        items: all of them, in order.
        shard: items of a file.
    """

    path: Path
    items: list[Item]
    shard: int

    def __len__(self) -> int:
        return -(-len(self.items) // self.shard)

    def begin(self, about: dict[str, Any]) -> None:
        """Make the folder, and write what its records depend on."""
        (self.path / "files").mkdir(parents=True, exist_ok=True)
        if not (self.path / "about.json").exists():
            write_text_atomic(self.path / "about.json", canonical(about, indent=1) + "\n")

    def items_of(self, shard: int) -> list[Item]:
        """Items of one file."""
        return self.items[shard * self.shard : (shard + 1) * self.shard]

    def missing(self) -> list[int]:
        """Shards that are still to be made."""
        return [n for n in range(len(self)) if not self._file(n).exists()]

    def write(self, shard: int, records: list[Record]) -> None:
        """One record for every item of the shard."""
        items = self.items_of(shard)
        assert len(records) == len(items), "a task gives one record for each item"
        lines = [
            json.dumps({"id": i["id"], **r}, ensure_ascii=False) + "\n" for i, r in zip(items, records, strict=True)
        ]
        write_text_atomic(self._file(shard), "".join(lines))

    def read(self, shard: int) -> list[Record]:
        """What `write` wrote.

        Raises:
            ValueError: the file was changed, so that it is no longer of these items.
        """
        lines = self._file(shard).read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        if [record.get("id") for record in records] != [item["id"] for item in self.items_of(shard)]:
            raise ValueError(f"{self._file(shard)} does not have the ids of its items; remove it, and it is made again")
        return records

    def read_all(self) -> list[Record]:
        """All records, in the order of the items."""
        return [record for shard in range(len(self)) for record in self.read(shard)]

    def forget(self, keys: tuple[str, ...]) -> int:
        """Remove the shards with a record that has one of these fields, to be made again; how many."""
        found = [n for n in range(len(self)) if self._file(n).exists() and _any_has(self.read(n), keys)]
        for shard in found:
            self._file(shard).unlink()
        return len(found)

    def _file(self, shard: int) -> Path:
        return self.path / f"shard-{shard:05d}.jsonl"


def phases_of(
    task: Task, name: str, file: ItemFile, hash_of: Any, out: Path
) -> Iterator[tuple[str, RecordFolder, dict]]:
    """(phase, its folder, what its records depend on) of a task in order.

    Args:
        task: what is asked.
        name: of the task in the suite.
        file: its items.
        hash_of: part of the model -> what tells it from others.
        out: folder of the evaluation.
    """
    before = ""
    for phase in task.phases:
        about = {
            "task": type(task).__name__,
            "phase": phase,
            "items": digest([[i["id"] for i in file.items], file.hash]),
            "shard": task.shard,
            "settings": task.settings(phase),
            "parts": {part: hash_of(part) for part in task.uses.get(phase, ())},
            "before": before,
        }
        before = digest(about)
        yield phase, RecordFolder(out / "records" / name / f"{phase}-{before[:8]}", file.items, task.shard), about


def canonical(value: Any, indent: int | None = None) -> str:
    """JSON that is the same for the same values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, indent=indent)


def digest(value: Any) -> str:
    """16 hex digits over plain values."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def _any_has(records: list[Record], keys: tuple[str, ...]) -> bool:
    return any(record.get(key) for record in records for key in keys)
