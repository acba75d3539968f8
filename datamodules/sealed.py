"""JSON files that say by themselves whether they are whole: any flipped bit, anywhere in one, is found."""

import hashlib
import json
from pathlib import Path
from typing import Any

from speechlm.files import write_text_atomic

SEAL = "sha256"


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


def seal_of(content: dict[str, Any]) -> str:
    """64 hex digits over plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _text(content: dict[str, Any]) -> str:
    return json.dumps({**content, SEAL: seal_of(content)}, indent=1) + "\n"
