"""StoryCloze and Topic-StoryCloze: from the table of stories, to be spoken, or from the recordings of SpokenStoryCloze.

The table is ROCStories' `cloze_test_*.csv`: InputStoryid, InputSentence1 to 4, RandomFifthSentenceQuiz1 and 2,
AnswerRightEnding. The recordings are `<n>_correct.wav` and `<n>_incorrect.wav` (context and ending together), or with
`<n>_mutual.wav` the ending alone; a `.txt` beside each has its words.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datamodules.eval_sets.zerospeech import relative
from speechlm.evals.items import Item, Said

SENTENCES = [f"InputSentence{n}" for n in range(1, 5)]
ENDINGS = ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2"]
COLUMNS = ["InputStoryid", *SENTENCES, *ENDINGS, "AnswerRightEnding"]


def story_cloze(table: Path, topic: bool = False, seed: int = 0) -> Iterator[Item]:
    """Stories of a table, as text.

    Args:
        table: cloze_test_*.csv.
        topic: the wrong ending is that of a random other story, as in Topic-StoryCloze.
        seed: of which.

    Raises:
        ValueError: a column is missing, or a row has no right ending.
    """
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lacking = [name for name in COLUMNS if not rows or name not in rows[0]]
    if lacking:
        raise ValueError(f"{table} has no column {', '.join(lacking)}; it is to be ROCStories' cloze_test_*.csv")
    right = [_ending(row, table) for row in rows]
    others = _others(len(rows), seed) if topic else None
    for n, row in enumerate(rows):
        wrong = row[ENDINGS[2 - int(row["AnswerRightEnding"])]] if others is None else right[others[n]]
        context = " ".join(row[name].strip() for name in SENTENCES)
        sides = {"context": {"text": context}, "positive": {"text": right[n]}, "negative": {"text": wrong.strip()}}
        yield {"id": row["InputStoryid"], **sides}


def spoken_story_cloze(corpus: Path, out: Path) -> Iterator[Item]:
    """Recordings of SpokenStoryCloze, with a context only where it has files of its own.

    Args:
        corpus: folder with <n>_correct.wav.
        out: the file that the items are for.

    Raises:
        ValueError: there is none, or a wrong ending has no right one.
    """
    names = sorted(path.name.removesuffix("_correct.wav") for path in corpus.glob("*_correct.wav"))
    if not names:
        raise ValueError(f"{corpus} has no <n>_correct.wav, as the folders sSC and tSC of SpokenStoryCloze have")
    if alone := {path.name.removesuffix("_incorrect.wav") for path in corpus.glob("*_incorrect.wav")} - set(names):
        raise ValueError(f"{corpus} has <n>_incorrect.wav without <n>_correct.wav for {', '.join(sorted(alone)[:5])}")
    for name in names:
        parts = {"positive": "correct", "negative": "incorrect"}
        if (corpus / f"{name}_mutual.wav").is_file():
            parts = {"context": "mutual", **parts}
        yield {"id": name, **{field: _said(corpus / f"{name}_{part}.wav", out) for field, part in parts.items()}}


def _ending(row: dict[str, str], table: Path) -> str:
    if row["AnswerRightEnding"] not in ("1", "2"):
        raise ValueError(
            f"{table}: story {row['InputStoryid']} has the right ending {row['AnswerRightEnding']!r}, not 1 or 2"
        )
    return row[ENDINGS[int(row["AnswerRightEnding"]) - 1]].strip()


def _others(count: int, seed: int) -> list[int]:
    """Another story for each: one cycle through all in a random order."""
    if count < 2:
        raise ValueError(f"Topic-StoryCloze needs two stories at least, got {count}")
    order = np.random.default_rng(seed).permutation(count)
    after = np.empty(count, np.int64)
    after[order] = np.roll(order, -1)
    return [int(n) for n in after]


def _said(path: Path, out: Path) -> Said:
    said: Said = {"audio": relative(path, out)}
    words = path.with_suffix(".txt")
    return {**said, "text": words.read_text(encoding="utf-8").strip()} if words.is_file() else said
