"""How a written text is said: numbers, dates, money and signs in words, by the grammars of WeTextProcessing."""

import importlib
import re
from functools import lru_cache
from typing import Any

#: A word that is not said as it is written: a digit or a sign in it, or a short abbreviation. Not the quotation marks around it,
#: which the grammars give back with a backslash. Looked for where words begin: anywhere in one is the square of its length.
ODD = re.compile(
    r"(?<![^\s\"])[^\s\"]*[0-9$€£¥%&@#=+*/~^°][^\s\"]*|\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|etc|e\.g|i\.e|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec)\."
)
#: Odd words with nothing but single spaces between them are said together: "Jan. 3rd", "5:30 p.m.", "10 %".
STRETCH = re.compile(rf"(?:{ODD.pattern})(?: (?:{ODD.pattern}|[ap]\.?m\b\.?))*")
HAS_ODD_ZH = re.compile(r"[0-9$€£¥￥%％&@#=+*/~^°]")
#: Characters that a grammar is given at most: its time and memory grow with them, and longer is nothing that is read aloud.
LONGEST_SAID = 1000
LANGUAGES = ("en", "zh", "ja")
_SPACE = re.compile(r"\s+")
_NO_LETTER = re.compile(r"[^\w\s]|_")
_UNREAD = re.compile(r"""[^\w\s.,;:!?'"\-’。，、；：！？]|_""")  # neither letter, digit nor ordinary punctuation
_NOTHING_SAID = re.compile(r"[\W_]*", re.UNICODE)


def spoken(text: str, language: str) -> str:
    """A text as it is read aloud, surrounding space removed.

    Only stretches with digits, signs or abbreviations go through the grammars, and each stretch once: a grammar takes
    milliseconds, and of a web page nine words in ten need none. Languages without a grammar are left as they are.

    Args:
        text: any text.
        language: code such as "en"; "" does nothing but trim.
    """
    text = " ".join(text.split())
    if language == "en":
        return STRETCH.sub(lambda match: _said(match[0], "en"), text)
    if language in LANGUAGES and HAS_ODD_ZH.search(text):
        return _said(text, language)
    return text


def speakable(text: str, min_letters: float = 0.6) -> str:
    """Why a text can not be read aloud, "" where it can: what has no words, and what is code, markup or an address.

    Args:
        text: as it is written.
        min_letters: share of its characters, spaces aside, that must be letters or digits.
    """
    if _NOTHING_SAID.fullmatch(text):
        return "no words"
    dense = len(_SPACE.sub("", text))
    if dense - len(_UNREAD.findall(text)) < min_letters * dense or "://" in text:
        return "not speakable"
    if dense - len(_NO_LETTER.findall(text)) < 0.5 * min_letters * dense:
        return "not speakable"
    return ""


@lru_cache(maxsize=100_000)
def _said(stretch: str, language: str) -> str:
    if len(stretch) > LONGEST_SAID:
        return stretch
    return str(_grammar(language).normalize(stretch))


@lru_cache(maxsize=len(LANGUAGES))
def _grammar(language: str) -> Any:
    """Loaded when the first stretch needs it: a second, and 50 MB."""
    return importlib.import_module("wetext").Normalizer(lang=language, operator="tn")
