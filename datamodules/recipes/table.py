"""Recordings that a table names, such as a few hours of a new language, as cut manifests with some texts held out."""

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut, MonoCut

from datamodules.recipes.parts import write_shuffled

COLUMNS = ("path", "text")


def prepare(table: Path, out: Path, language: str, heldout_share: float = 0.1, seed: int = 0) -> None:
    """Write `train.jsonl.gz` and `heldout.jsonl.gz`; a recording goes where the hash of its text says.

    Recordings of the same text are on the same side, so no held-out recording's text has been heard in training.

    Args:
        table: .jsonl (an object a line), .tsv or .csv (names in the first line) with the columns `path`, from the table's folder,
            and `text`; `id`, `speaker` and `language` where they are known.
        out: where the manifests go.
        language: code such as "es", of rows that name none.
        heldout_share: of the texts, to keep out of training.
        seed: of the shuffle and of which texts are held out.

    Raises:
        ValueError: the table lacks a column, has no row, or all texts fall on one side.
    """
    sides: dict[str, list[Cut]] = {"train": [], "heldout": []}
    for number, row in enumerate(_rows(table), 1):
        missing = [name for name in COLUMNS if not row.get(name)]
        if missing:
            raise ValueError(f"row {number} of {table} has no {' and no '.join(missing)}; it has {', '.join(row)}")
        sides["heldout" if _held_out(row["text"], heldout_share, seed) else "train"].append(_cut(row, table, language))
    for name, cuts in sides.items():
        if not cuts:
            raise ValueError(f"no text of {table} falls into {name} at heldout_share {heldout_share} and seed {seed}")
    out.mkdir(parents=True, exist_ok=True)
    for name, cuts in sides.items():
        write_shuffled(cuts, out / f"{name}.jsonl.gz", f"{seed} {name}")


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    if not table.is_file():
        raise ValueError(f"there is no table at {table}")
    with open(table, encoding="utf-8", newline="") as file:
        if table.suffix == ".jsonl":
            yield from (json.loads(line) for line in file if line.strip())
        elif table.suffix in (".tsv", ".csv"):
            yield from csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ",")
        else:
            raise ValueError(f"a table is .jsonl, .tsv or .csv, got {table}")


def _held_out(text: str, share: float, seed: int) -> bool:
    words = " ".join(text.lower().split())
    return int(hashlib.sha256(f"{seed} {words}".encode()).hexdigest()[:8], 16) < share * 2**32


def _cut(row: dict[str, Any], table: Path, language: str) -> Cut:
    path = table.parent / row["path"]
    name = str(row.get("id") or Path(row["path"]).with_suffix("").as_posix())
    if not path.is_file():
        raise ValueError(f"{table} names {path}, which is not there")
    recording = Recording.from_file(path, recording_id=name)
    said = SupervisionSegment(
        id=name,
        recording_id=name,
        start=0.0,
        duration=recording.duration,
        text=row["text"],
        language=row.get("language") or language,
        speaker=row.get("speaker") or None,
    )
    return MonoCut(name, 0.0, recording.duration, 0, supervisions=[said], recording=recording)
