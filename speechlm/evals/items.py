"""What an evaluation asks: one JSON object a line, audio beside it, and an account of every line that can not be used.

A field that is said or written is an object with any of

- `text`: the words;
- `audio`: path from the file's folder, with `start` and `seconds` where only a part is meant;
- `tokens`: speech tokens, with `made_by`, the hash of the tokenizer whose codes they are.

`python -m speechlm.prepare_eval` writes such files from the published layouts of the sets.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speechlm.files import write_text_atomic
from speechlm.sound import resample

Item = dict[str, Any]
Said = dict[str, Any]


class Unusable(Exception):
    """An item that can not be scored; `reason` is a few words that are counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


@dataclass(frozen=True)
class ItemFile:
    """Items in the order of their file, and what of it was refused.

    Attributes:
        path: of the file.
        items: usable so far; `id` is unique.
        refused: reason -> ids, or places where a line has none.
        hash: 16 hex digits over the file's content.
    """

    path: Path
    items: list[Item]
    refused: dict[str, list[str]] = field(default_factory=dict)
    hash: str = ""


def read_items(path: str | Path, check: Callable[[Item], str] = lambda item: "", limit: int | None = None) -> ItemFile:
    """Read a file of items.

    Args:
        path: JSON lines.
        check: of a task: why an item lacks what it needs, "" where it does not.
        limit: the first so many usable items.

    Raises:
        ValueError: there is no file, or not one usable item in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there are no items at {path}; python -m speechlm.prepare_eval writes them")
    content = path.read_bytes()
    lines = [(n, line) for n, line in enumerate(content.decode("utf-8").splitlines(), 1) if line.strip()]
    parsed = [(n, _parsed(line)) for n, line in lines]
    twice = _repeated(item["id"] for _, item in parsed if item and item.get("id"))
    items: list[Item] = []
    refused: dict[str, list[str]] = {}
    for number, item in parsed:
        reason = _problem(item, path.parent, check, twice)
        if reason:
            name = str(item.get("id") or f"line {number}") if item else f"line {number}"
            refused.setdefault(reason, []).append(name)
        elif item is not None:
            items.append(item)
    if not items:
        raise ValueError(f"{path} has no usable item; refused: { {r: len(ids) for r, ids in refused.items()} }")
    return ItemFile(path, items[:limit], refused, hashlib.sha256(content).hexdigest()[:16])


def write_items(path: str | Path, items: Iterable[Item]) -> int:
    """Write a file of items, whole or not at all, and return their number."""
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
    write_text_atomic(path, "".join(lines))
    return len(lines)


def file_hash(path: str | Path) -> str:
    """16 hex digits over a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def load_audio(said: Said, folder: Path, rate_hz: int) -> np.ndarray:
    """(N,) float32 in [-1, 1] of what is said, the first channel.

    Raises:
        Unusable: unreadable, empty or not finite.
    """
    path = folder / said["audio"]
    try:
        with soundfile.SoundFile(path) as file:
            own = file.samplerate
            file.seek(round(said.get("start", 0.0) * own))
            count = round(said["seconds"] * own) if said.get("seconds") else -1
            audio = file.read(count, dtype="float32", always_2d=True)[:, 0]
    except (OSError, RuntimeError, ValueError) as error:
        raise Unusable("unreadable audio", f"{path}: {error}") from error
    if not audio.size:
        raise Unusable("empty audio", str(path))
    if not np.isfinite(audio).all():
        raise Unusable("audio is not finite", str(path))
    return np.clip(resample(audio, own, rate_hz), -1.0, 1.0)


def said_fields(item: Item) -> dict[str, Said]:
    """The fields of an item that are said or written."""
    return {name: value for name, value in item.items() if isinstance(value, dict) and name != "meta"}


def _parsed(line: str) -> Item | None:
    try:
        item = json.loads(line)
    except json.JSONDecodeError:
        return None
    return item if isinstance(item, dict) else None


def _problem(item: Item | None, folder: Path, check: Callable[[Item], str], twice: set[str]) -> str:
    if item is None:
        return "not a JSON object"
    if not isinstance(item.get("id"), str) or not item["id"]:
        return "no id"
    if item["id"] in twice:
        return "duplicate id"
    lacking = check(item)
    if lacking:
        return lacking
    missing = [s["audio"] for s in said_fields(item).values() if s.get("audio") and not (folder / s["audio"]).is_file()]
    return "missing audio" if missing else ""


def _repeated(ids: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    twice: set[str] = set()
    for one in ids:
        (twice if one in seen else seen).add(one)
    return twice
