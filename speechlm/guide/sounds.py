"""What of the tour can be heard: recordings and what was made of them, texts that were spoken, questions and their answers."""

import json
from pathlib import Path

import numpy as np
import soundfile

from speechlm.evals.items import read_items
from speechlm.evals.report_page import card, player, words
from speechlm.guide.plan import Plan
from speechlm.sound import resample

RATE_HZ = 16_000  # one that Opus has
SPOKEN_TEXTS = 4


def recordings(plan: Plan, out: Path) -> list[str]:
    """Cards of recordings, each with what came of it through tokens and back."""
    return [
        card(words(name.replace("_", " ")), *heard("recording", Path(path)), *heard("through the tokens", made))
        for name, path in plan.recordings.items()
        if (made := out / "sounds" / f"{name}.flac").is_file()
    ]


def answers(plan: Plan, out: Path) -> list[str]:
    """Cards of recorded questions with their answers."""
    cards = []
    for name, path in plan.questions.items():
        made, text = (out / "sounds" / f"answer_{name}.{ending}" for ending in ("wav", "txt"))
        said = text.read_text(encoding="utf-8").splitlines() if text.is_file() else []
        reply = heard("answer", made) if made.is_file() else [words("answer: no sound")]
        cards.append(card(words(name.replace("_", " ")), *heard("question", Path(path)), *reply, *map(words, said[:1])))
    return cards


def spoken_texts(out: Path, task: str = "text_to_token") -> list[str]:
    """Cards of the first texts that the evaluation had the text-to-token model say."""
    items = out / "eval" / "train.jsonl"
    texts = {item["id"]: item["speech"]["text"] for item in read_items(items).items} if items.is_file() else {}
    shards = sorted((out / "evaluation" / "records" / task).glob("transcripts-*/shard-*.jsonl"))
    made = []
    for shard in shards:
        for record in map(json.loads, shard.read_text(encoding="utf-8").splitlines()):
            if record.get("sound"):
                said = texts.get(record["id"], record["id"])
                sound = heard(f"text: {said}", shard.parent / "files" / record["sound"])
                made.append(card(*sound, words(f"heard as: {record.get('text', '')}")))
    return made[:SPOKEN_TEXTS]


def heard(caption: str, path: Path) -> list[str]:
    """A caption and a player of a sound file."""
    audio, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    return [words(caption), player(resample(np.ascontiguousarray(audio[:, 0]), rate_hz, RATE_HZ), RATE_HZ)]


def measured(out: Path) -> list[list[str]]:
    """Rows of the evaluation: task, metric, value with its interval, items."""
    path = out / "evaluation" / "evaluation.json"
    if not path.is_file():
        return []
    tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    return [
        [task, m["name"], f"{m['value']:.1f} {m['unit']}", _interval(m["low"], m["high"]), str(m["count"])]
        for task, result in tasks.items()
        for m in result["metrics"]
    ]


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.1f} to {high:.1f}"
