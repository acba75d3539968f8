"""Questions with answers: Web Questions, TriviaQA and Llama Questions, as they are published.

- Web Questions: `webquestions.examples.test.json`, `utterance` and `targetValue`, a list in Lisp: (list (description
"Jazmyn") …).
- TriviaQA: `qa/*.json` of the archive, `Data` with Question, QuestionId and Answer (Value, Aliases, HumanAnswers).
- Llama Questions: a table with the columns question and answer, and recordings in the order of its rows or named in a
column `audio`.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.eval_sets.zerospeech import relative
from speechlm.evals.items import Item

DESCRIPTION = re.compile(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^)]*))\)')


def web_questions(path: Path) -> Iterator[Item]:
    """Questions of Web Questions; every description is an answer that counts.

    Raises:
        ValueError: the file has another form.
    """
    for n, row in enumerate(_json(path, list)):
        if "utterance" not in row or "targetValue" not in row:
            raise ValueError(f"{path}: entry {n} has no utterance and targetValue")
        found = [(quoted or bare).replace('\\"', '"') for quoted, bare in DESCRIPTION.findall(row["targetValue"])]
        yield {"id": f"webq-{n}", "question": {"text": row["utterance"]}, "answers": found}


def trivia_qa(path: Path) -> Iterator[Item]:
    """Questions of TriviaQA; the value and all aliases count.

    Raises:
        ValueError: the file has another form.
    """
    data = _json(path, dict).get("Data")
    if not isinstance(data, list):
        raise ValueError(f"{path} has no list Data; it is to be one of qa/*.json of TriviaQA")
    for row in data:
        answer = row.get("Answer") or {}
        names = [answer.get("Value"), *answer.get("Aliases", []), *answer.get("HumanAnswers", [])]
        yield {
            "id": row["QuestionId"],
            "question": {"text": row["Question"]},
            "answers": list(dict.fromkeys(name for name in names if name)),
        }


def llama_questions(table: Path, out: Path, audio: Path | None = None) -> Iterator[Item]:
    """Questions of Llama Questions.

    Args:
        table: .csv, .tsv or .jsonl.
        out: the file that the items are for.
        audio: folder of recordings, where the table does not name them.

    Raises:
        ValueError: a column is missing, or the recordings do not fit the rows.
    """
    rows = _rows(table)
    sounds = sorted(audio.glob("*.wav"), key=_number) if audio else []
    if audio and len(sounds) != len(rows):
        raise ValueError(f"{audio} has {len(sounds)} recordings, {table} {len(rows)} questions")
    for n, row in enumerate(rows):
        if not row.get("question") or not row.get("answer"):
            raise ValueError(f"row {n + 1} of {table} has no question and answer; it has {', '.join(row)}")
        path = sounds[n] if audio else table.parent / row["audio"] if row.get("audio") else None
        question = {"text": row["question"], **({"audio": relative(path, out)} if path else {})}
        yield {"id": str(row.get("id") or f"llamaq-{n}"), "question": question, "answers": [row["answer"]]}


def _number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.stem)
    return (int(digits[-1]) if digits else 0), path.name


def _rows(table: Path) -> list[dict[str, str]]:
    text = table.read_text(encoding="utf-8")
    if table.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    if table.suffix not in (".csv", ".tsv"):
        raise ValueError(f"a table is .csv, .tsv or .jsonl, got {table}")
    return list(csv.DictReader(text.splitlines(), delimiter="\t" if table.suffix == ".tsv" else ","))


def _json(path: Path, kind: type) -> Any:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a {kind.__name__}")
    return content
