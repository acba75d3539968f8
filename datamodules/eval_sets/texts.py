"""Texts to speak and instructions to answer: Seed-TTS eval, AlpacaEval with Vicuna's questions, and 100 of the QA questions.

- Seed-TTS eval: `<language>/meta.lst`, a line is name|prompt text|prompt audio|text, with the recording of it behind,
or in wavs/.
- AlpacaEval: `alpaca_eval.json`, of which `dataset` helpful_base is taken; Vicuna: `question.jsonl`, all but math.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from datamodules.eval_sets.zerospeech import relative
from datamodules.recipes.part_writer import Tally
from speechlm.evals.items import Item, read_items

LEFT_OUT = ("math",)  # of Vicuna's categories: nothing to say aloud


def seed_tts(corpus: Path, out: Path, language: str) -> Iterator[Item]:
    """Texts of Seed-TTS eval, with the recordings where they are.

    Args:
        corpus: the folder that has en/ and zh/.
        out: the file that the items are for.
        language: en or zh.

    Raises:
        ValueError: a line has another form.
    """
    table = corpus / language / "meta.lst"
    if not table.is_file():
        raise ValueError(f"there is no {table}; it is to be the folder seedtts_testset")
    for line in table.read_text(encoding="utf-8").splitlines():
        fields = line.strip().split("|")
        if not 4 <= len(fields) <= 5:
            raise ValueError(f"{table}: a line is name|prompt text|prompt audio|text, got {line[:80]!r}")
        name, _, prompt, text = fields[:4]
        recording = table.parent / (fields[4] if len(fields) == 5 else f"wavs/{name}.wav")
        speech = {"text": text, **({"audio": relative(recording, out)} if recording.is_file() else {})}
        yield {
            "id": name,
            "language": language,
            "speech": speech,
            "prompt": {"audio": relative(table.parent / prompt, out)},
        }


def general_qa(alpaca: Path, vicuna: Path, tally: Tally) -> Iterator[Item]:
    """Instructions for a judge without references.

    Args:
        alpaca: alpaca_eval.json.
        vicuna: question.jsonl.
        tally: counts rows, and those that are left out.

    Raises:
        ValueError: nothing is left of a file.
    """
    published = json.loads(alpaca.read_text(encoding="utf-8"))
    rows = [row for row in published if row.get("dataset") == "helpful_base"]
    lines = [json.loads(line) for line in vicuna.read_text(encoding="utf-8").splitlines() if line.strip()]
    turns = [line for line in lines if line.get("category") not in LEFT_OUT]
    if not rows or not turns:
        raise ValueError(f"{alpaca} has {len(rows)} instructions of helpful_base, {vicuna} {len(turns)} questions")
    tally.found += len(published) + len(lines)
    tally.left_out["of other sets than helpful_base"] += sum(row.get("dataset") != "helpful_base" for row in published)
    tally.left_out[f"of {', '.join(LEFT_OUT)}"] += sum(line.get("category") in LEFT_OUT for line in lines)
    for n, row in enumerate(rows):
        yield {"id": f"alpaca-{n}", "group": "alpaca", "instruction": {"text": row["instruction"]}}
    for turn in turns:
        yield {"id": f"vicuna-{turn['question_id']}", "group": "vicuna", "instruction": {"text": turn["turns"][0]}}


def knowledge(sets: Sequence[Path], out: Path, tally: Tally, count: int = 100, seed: int = 0) -> Iterator[Item]:
    """Questions of prepared sets, evenly, drawn by a seed; their answers are the references.

    Args:
        sets: item files of questions.
        out: the file that the items are for.
        tally: counts usable items of the sets, and those that are not drawn.
        count: in all.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    for n, path in enumerate(sets):
        items = read_items(path).items
        share = count // len(sets) + (n < count % len(sets))
        tally.found += len(items)
        tally.left_out["not drawn"] += max(0, len(items) - share)
        for pick in sorted(rng.permutation(len(items))[:share].tolist()):
            item = items[pick]
            said = dict(item["question"])
            if said.get("audio"):
                said["audio"] = relative(path.parent / said["audio"], out)
            yield {
                "id": f"{path.stem}-{item['id']}",
                "instruction": said,
                "references": item["answers"],
                "group": path.stem,
            }
