"""Recordings that a table names, such as a few hours of a new language, as cut manifests with some texts held out."""

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from lhotse.cut import Cut

from datamodules.recipes.parts import write_shuffled
from datamodules.recipes.utterances import Utterance, cut_or_reason

COLUMNS = ("path", "text")


def prepare(
    table: Path, out: Path, language: str, heldout_share: float = 0.1, seed: int = 0, licence: str = ""
) -> None:
    """Write `train.jsonl.gz` and `heldout.jsonl.gz`; a recording goes where the hash of its text says.

    Recordings of the same text are on the same side, so no held-out recording's text has been heard in training. A file
    that is no sound is left out and counted.

    Args:
        table: .jsonl (an object a line), .tsv or .csv (names in the first line) with the columns `path`, from the table's folder,
            and `text`; `id`, `speaker` and `language` where they are known.
        out: where the manifests go.
        language: code such as "es", of rows that name none.
        heldout_share: of the texts, to keep out of training.
        seed: of the shuffle and of which texts are held out.
        licence: of the recordings; `datamodules.prepare` writes it on the card, and what is made of them carries it on.

    Raises:
        ValueError: the table lacks a column, has no row, or all texts fall on one side.
    """
    sides: dict[str, list[Cut]] = {"train": [], "heldout": []}
    left_out: dict[str, dict[str, str]] = {name: {} for name in sides}
    for number, row in enumerate(_rows(table), 1):
        missing = [name for name in COLUMNS if not row.get(name)]
        if missing:
            raise ValueError(f"row {number} of {table} has no {' and no '.join(missing)}; it has {', '.join(row)}")
        side = "heldout" if _held_out(row["text"], heldout_share, seed) else "train"
        made = _cut(row, table, language)
        if isinstance(made, str):
            left_out[side][f"row {number}"] = made
        else:
            sides[side].append(made)
    for name, cuts in sides.items():
        if not cuts:
            raise ValueError(
                f"no text of {table} falls into {name} at heldout_share {heldout_share} and seed {seed}, of "
                f"{sum(map(len, sides.values()))} recordings; give another --heldout_share, or another --seed"
            )
    out.mkdir(parents=True, exist_ok=True)
    for name, cuts in sides.items():
        write_shuffled(cuts, out / f"{name}.jsonl.gz", f"{seed} {name}", left_out[name])


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    if not table.is_file():
        raise ValueError(f"there is no table at {table}")
    with open(table, encoding="utf-8", newline="") as file:
        if table.suffix == ".jsonl":
            yield from (json.loads(line) for line in file if line.strip())
        elif table.suffix in (".tsv", ".csv"):
            yield from _separated(file, table)
        else:
            raise ValueError(f"a table is .jsonl, .tsv or .csv, got {table}")


def _separated(file: TextIO, table: Path) -> Iterator[dict[str, Any]]:
    """Rows of tabs or commas; a stray quotation mark, which would swallow the rows behind it, is an error."""
    reader = csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ",", strict=True)
    advice = "write a text with quotation marks as CSV does, or the table as .jsonl"
    try:
        for row in reader:
            if any("\n" in str(value) for value in row.values()):
                raise ValueError(
                    f"a field of {table} goes on over line {reader.line_num}: an open quotation mark? {advice}"
                )
            yield row
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} of {table}: {error}; {advice}") from error


def _held_out(text: str, share: float, seed: int) -> bool:
    words = " ".join(text.lower().split())
    return int(hashlib.sha256(f"{seed} {words}".encode()).hexdigest()[:8], 16) < share * 2**32


def _cut(row: dict[str, Any], table: Path, language: str) -> Cut | str:
    """A row's cut, or the reason why it has none."""
    path = table.parent / row["path"]
    name = str(row.get("id") or Path(row["path"]).with_suffix("").as_posix())
    if not path.is_file():
        raise ValueError(f"{table} names {path}, which is not there")
    return cut_or_reason(Utterance(name, path, row["text"], row.get("language") or language, row.get("speaker")))
