"""sWUGGY and sBLIMP as the ZeroSpeech 2021 archive unpacks them: folders of recordings with a `gold.csv` beside them.

`lexical/<split>/gold.csv` has a row for each recording of a word or a non-word (filename, id, voice, word, correct,
and frequency where it is known), `syntactic/<split>/gold.csv` one for each sentence (filename, id, voice, type,
subtype, transcription, correct). A pair is the right and the wrong recording of the same id and voice.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from datamodules.recipes.layout import require
from speechlm.evals.items import Item, Said

SOURCE = "zerospeech.com (the 2021 benchmark)"


def swuggy(corpus: Path, out: Path, split: str = "dev") -> Iterator[Item]:
    """Pairs of a word and a non-word; the group is "oov" where the table gives no frequency, else "in-vocabulary".

    Args:
        corpus: the folder that has lexical/.
        out: the file that the items are for.
        split: dev or test.

    Raises:
        ValueError: it is not there.
    """
    for key, right, wrong in _pairs(corpus, "lexical", split):
        known = right.get("frequency", "").strip().lower()
        group = "oov" if known in ("", "oov", "nan") else "in-vocabulary"
        yield _item(key, right, wrong, group, corpus / "lexical" / split, out, "word")


def sblimp(corpus: Path, out: Path, split: str = "dev") -> Iterator[Item]:
    """Pairs of a grammatical and an ungrammatical sentence; the group is the phenomenon. Arguments as for `swuggy`."""
    for key, right, wrong in _pairs(corpus, "syntactic", split):
        yield _item(key, right, wrong, right.get("type", ""), corpus / "syntactic" / split, out, "transcription")


def _pairs(corpus: Path, task: str, split: str) -> Iterator[tuple[str, dict[str, str], dict[str, str]]]:
    require(corpus, [f"{task}/{split}/gold.csv"], f"ZeroSpeech's {task} set", SOURCE)
    path = corpus / task / split / "gold.csv"
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lacking = {"id", "filename", "voice", "correct"} - set(rows[0] if rows else ())
    if lacking:
        raise ValueError(f"{path} has no column {', '.join(sorted(lacking))}")
    sides: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        side = sides.setdefault((row["id"], row["voice"]), {})
        if row["correct"] in side:
            raise ValueError(
                f"{path} has two rows with id {row['id']}, voice {row['voice']} and correct {row['correct']}"
            )
        side[row["correct"]] = row
    for (number, voice), side in sides.items():
        if set(side) != {"0", "1"}:
            raise ValueError(f"{path} has no pair of id {number} and voice {voice}: correct is {sorted(side)}")
        yield f"{number}-{voice}", side["1"], side["0"]


def _item(
    key: str, right: dict[str, str], wrong: dict[str, str], group: str, folder: Path, out: Path, text: str
) -> Item:
    sides = (_said(row, folder, out, text) for row in (right, wrong))
    positive, negative = sides
    return {"id": key, "group": group, "positive": positive, "negative": negative}


def _said(row: dict[str, str], folder: Path, out: Path, text: str) -> Said:
    name = row["filename"] if row["filename"].endswith(".wav") else f"{row['filename']}.wav"
    said: Said = {"audio": relative(folder / name, out)}
    return {**said, "text": row[text]} if row.get(text) else said


def relative(path: Path, out: Path) -> str:
    """A path as an item file at `out` names it."""
    return os.path.relpath(path.resolve(), out.resolve().parent)
