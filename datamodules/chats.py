"""Text chats of published sets, cut down to what can be said aloud.

Read are lines of JSON in the forms of UltraChat (`data`: a list of strings, user first), ShareGPT (`conversations`: `from` and
`value`), chat messages (`messages`: `role` and `content`) and VoiceAssistant-400K (`question` and `answer`).
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.documents import placed_lines
from speechlm.spoken_text import speakable
from speechlm.tokens.chat_templates import Role

ROLE_NAMES: dict[str, Role] = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant",
}  # fmt: skip
#: What is never said aloud; the first that matches is the reason that is counted.
UNSAYABLE = (
    ("code", re.compile(r"```|`[^`\n]+`|^\s*(?:def|class|import|#include|SELECT|public)\b.*[({;:*]|[{};]\s*$|</?\w+>", re.M)),
    ("table", re.compile(r"^\s*\|.*\|\s*$|\t.*\t", re.M)),
    ("maths", re.compile(r"\$[^$\n]+\$|\\\(|\\\[|\\frac|\\sum|[=<>^]\s*-?\w+\s*[=<>+*/^]|\d\s*[*/^=]\s*\d|[∑∫√≤≥≠∞]")),
    ("list", re.compile(r"(?:^\s*(?:[-*•]|\d+[.)])\s+.*\n?){2,}", re.M)),
    ("address", re.compile(r"\w+://|www\.|\S+@\S+\.\w")),
)  # fmt: skip
SENTENCE = re.compile(r".*?(?:[.!?。！？]+[\"'”’)]*(?=\s|$)|[。！？]|$)", re.S)
EMPHASIS = re.compile(r"(\*\*|__|\*|^#+\s*)", re.M)


@dataclass(frozen=True)
class ChatSettings:
    """Which chats become spoken dialogues.

    Args:
        max_turns: turns of both sides that are kept, from the beginning.
        max_user_words: longer questions are not said; their dialogue ends before them.
        max_reply_words: replies are shortened to whole sentences of so many words together.
        user_voices: voices that the text-to-token model knows, for ``{voice}`` in its template; each dialogue's user has one.
        reply_voices: likewise of the replies.

    Raises:
        ValueError: a number is too small.
    """

    max_turns: int = 8
    max_user_words: int = 60
    max_reply_words: int = 60
    user_voices: tuple[str, ...] = ()
    reply_voices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_turns < 2 or min(self.max_user_words, self.max_reply_words) < 1:
            raise ValueError(f"max_turns >= 2 and words >= 1 must hold, got {self}")


@dataclass
class Chat:
    """A text chat.

    Attributes:
        id: tells it from others.
        turns: whose, and what.
        problem: why there is none, empty where there is.
        left_out: turns that are not in it any more, by reason.
        shortened: replies that are shorter than they were.
    """

    id: str
    turns: list[tuple[Role, str]] = field(default_factory=list)
    problem: str = ""
    left_out: Counter[str] = field(default_factory=Counter)
    shortened: int = 0


def read_chats(path: Path, id_field: str = "id") -> Iterator[Chat]:
    """Chats of a file as they are written, in order.

    Raises:
        ValueError: the file is cut short or damaged.
    """
    for where, line in placed_lines(path):
        try:
            fields = json.loads(line)
            yield Chat(str(fields.get(id_field, where)), list(_turns(fields)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            yield Chat(where, problem="bad line")


def sayable_chat(chat: Chat, settings: ChatSettings) -> Chat:
    """As much of a chat as can be said: whole exchanges of one turn each, up to the first that can not.

    Where there is none, `problem` says why; instructions of the system are left out, since they speak of text. What ended the
    chat is the reason for all turns behind it.
    """
    if chat.problem:
        return chat
    turns = [turn for turn in chat.turns if turn[0] != "system"]
    kept: list[tuple[Role, str]] = []
    problem, shorter = "" if turns else "empty", 0
    for (asks, question), (replies, answer) in zip(turns[::2], turns[1::2], strict=False):
        if (asks, replies) != ("user", "assistant"):
            problem = "turns out of order"
            break
        question, whole = plain_words(question), plain_words(answer)
        answer = shortened(whole, settings.max_reply_words)
        problem = unsayable(question, settings.max_user_words) or unsayable(answer, settings.max_reply_words)
        problem = problem or ("beyond max_turns" if len(kept) + 2 > settings.max_turns else "")
        if problem:
            break
        shorter += answer != whole
        kept += [("user", " ".join(question.split())), ("assistant", " ".join(answer.split()))]
    problem = problem or "no reply"
    left_out = Counter({"instructions": len(chat.turns) - len(turns), problem: len(turns) - len(kept)})
    return Chat(chat.id, kept, "" if kept else problem, +left_out, shorter)


def unsayable(text: str, max_words: int) -> str:
    """Why a turn can not be said, "" where it can."""
    for reason, pattern in UNSAYABLE:
        if pattern.search(text):
            return reason
    if len(text.split()) > max_words or len(text) > 12 * max_words:
        return "too long"
    return speakable(text)


def plain_words(text: str) -> str:
    """A text without marks of emphasis and headings."""
    return EMPHASIS.sub("", text).strip() if "```" not in text else text


def shortened(text: str, max_words: int) -> str:
    """The first whole sentences that have so many words together; a longer first sentence stays as it is."""
    if any(pattern.search(text) for _, pattern in UNSAYABLE):
        return text
    kept = ""
    for match in SENTENCE.finditer(text):
        if kept and len((kept + match[0]).split()) > max_words:
            break
        kept += match[0]
    return kept.strip()


def _turns(fields: dict[str, Any]) -> Iterator[tuple[Role, str]]:
    if "data" in fields:
        sides: tuple[Role, Role] = ("user", "assistant")
        for number, text in enumerate(fields["data"]):
            yield sides[number % 2], _string(text)
    elif "conversations" in fields or "messages" in fields:
        for turn in fields.get("conversations") or fields["messages"]:
            name = turn.get("from") or turn["role"]
            yield ROLE_NAMES[name], _string(turn["value"] if "value" in turn else turn["content"])
    else:
        yield "user", _string(fields["question"])
        yield "assistant", _string(fields["answer"])


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a turn is a string, got {type(value).__name__}")
    return value
