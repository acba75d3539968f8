"""Spoken dialogues on disk: a line of JSON each, every turn with its words, its speech tokens and who speaks them.

    {"id": "d7", "turns": [{"role": "user", "text": "Where do fish live?", "speech": [5, 901, 12], "voice": "a"},
                           {"role": "assistant", "text": "In the water.", "speech": [77, 8, 3], "voice": "b"}]}

`speech` and `voice` may be missing: a turn of the system has none, and so has a user who types. Fields of the dialogue that are
not named here are kept beside it, such as where it comes from.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.documents import placed_lines
from speechlm.tokens.chat_templates import ROLES, Role

DIALOGUE_FILES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass
class Said:
    """One turn.

    Attributes:
        role: whose it is.
        text: its words.
        speech: (T,) codes, empty where nobody spoke.
        voice: who speaks.
    """

    role: Role
    text: str
    speech: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    voice: str = ""


@dataclass
class Dialogue:
    """A conversation.

    Attributes:
        id: tells it from others.
        turns: in order.
        about: more fields of the line.
        problem: why it can not be used, empty where it can.
    """

    id: str
    turns: list[Said] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def dialogue_files(paths: list[str]) -> list[Path]:
    """All files of dialogues, in order, folders searched through.

    Raises:
        FileNotFoundError: a path is not there.
        ValueError: a folder has none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder {path}")
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        files = [one for one in inside if one.name.endswith(DIALOGUE_FILES) and not one.name.startswith(".")]
        if not files:
            raise ValueError(f"{path} has no dialogues ({', '.join(DIALOGUE_FILES)})")
        found += files
    return found


def read_dialogues(path: Path) -> Iterator[Dialogue]:
    """Dialogues of a file, in order; one that can not be read says so in `problem`.

    Raises:
        ValueError: the file itself is cut short or damaged.
    """
    for where, line in placed_lines(path):
        try:
            fields = json.loads(line)
            turns = [_said(one) for one in fields.pop("turns")]
            yield Dialogue(str(fields.pop("id", where)), turns, fields)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            yield Dialogue(where, problem=f"bad line: {type(error).__name__}: {error}")


def dialogue_line(dialogue: Dialogue) -> str:
    """The line of JSON of a dialogue, the same for the same dialogue."""
    turns = [
        {"role": one.role, "text": one.text}
        | ({"speech": one.speech.tolist(), "voice": one.voice} if len(one.speech) else {})
        for one in dialogue.turns
    ]
    return json.dumps({"id": dialogue.id, "turns": turns, **dialogue.about}, ensure_ascii=True, separators=(",", ":"))


def _said(fields: Any) -> Said:
    role, text, codes = fields["role"], fields["text"], np.array(fields.get("speech") or [], np.int64)
    if role not in ROLES:
        raise ValueError(f"a turn is of {', '.join(ROLES)}, got {role!r}")
    if not isinstance(text, str) or codes.ndim != 1:
        raise TypeError("a turn has a string as `text` and a list of whole numbers as `speech`")
    return Said(role, text, codes, str(fields.get("voice", "")))
