"""JSON files that say by themselves whether they are whole: any flipped bit, anywhere in one, is found."""

import hashlib
import json
from pathlib import Path
from typing import Any

from speechlm.files import write_text_atomic

SEAL = "sha256"
SHOWN = 20  # differences that an error lists


def write_sealed(path: str | Path, content: dict[str, Any]) -> None:
    """Write plain values with a checksum of them, whole or not at all, the same bytes for the same values."""
    write_text_atomic(path, _text(content))


def read_sealed(path: str | Path) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not, to the byte, what was written.
    """
    data = Path(path).read_bytes()
    try:
        content = json.loads(data.decode("utf-8"))
        content.pop(SEAL)
        whole = _text(content).encode() == data
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged: its content is not what its checksum was made of")
    return content


def begin(path: Path, content: dict[str, Any]) -> None:
    """Write what a folder is made with, or hold it against what was written when the folder was begun.

    Args:
        path: of the file, in the folder.
        content: plain values.

    Raises:
        ValueError: the folder was begun with something else, or the file is damaged.
    """
    if not path.exists():
        write_sealed(path, content)
    require_same(path.parent, read_sealed(path), json.loads(json.dumps(content)))


def require_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a folder that was begun with something else.

    Raises:
        ValueError: what differs, before and now.
    """
    changed = _differences(before, now)
    if changed:
        shown = [f"\n  {name}: {old} -> {new}" for name, old, new in changed[:SHOWN]]
        more = [f"\n  and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
        raise ValueError(
            f"{folder} was begun with something else:{''.join(shown + more)}\nchoose another `out`, or go on with what it was "
            f"begun with"
        )


def seal_of(content: dict[str, Any]) -> str:
    """64 hex digits over plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _text(content: dict[str, Any]) -> str:
    return json.dumps({**content, SEAL: seal_of(content)}, indent=1) + "\n"


def _differences(before: Any, now: Any, name: str = "") -> list[tuple[str, str, str]]:
    """(dotted name, before, now) of plain values that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [d for k in keys for d in _differences(before.get(k), now.get(k), f"{name}.{k}" if name else k)]
    if isinstance(before, list | tuple) and isinstance(now, list | tuple) and len(before) == len(now):
        return [d for i, (a, b) in enumerate(zip(before, now, strict=True)) for d in _differences(a, b, f"{name}.{i}")]
    return [] if before == now else [(name, str(before), str(now))]
