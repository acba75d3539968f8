"""Is the answer in the response? The matcher in public use for spoken questions, with the forms a spoken answer can take.

A gold answer is found where all its words are in the response, in any order; any alias will do. Case, punctuation, accents and
articles of the gold answer do not count, and a number is the same in words and in digits ("twenty-one", "21"; "third", "3rd").
`in_order` asks for the words next to each other, which refuses "York is not in New Jersey" for "New York" and also
"John F Kennedy" for "John Kennedy".
"""

import re
import unicodedata
from collections.abc import Sequence

ARTICLES = frozenset(("a", "an", "the"))
_UNITS = {
    name: value
    for value, name in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
}
_TENS = {
    name: 10 * value
    for value, name in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2)
}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ORDINALS = {
    "first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12,
}  # fmt: skip
_WORD = re.compile(r"\w+")


def matches(response: str, answers: Sequence[str], in_order: bool = False) -> bool:
    """Whether a response has one of the answers in it.

    Args:
        response: what was said or written.
        answers: the gold answer and its aliases; one without a word in it can not be found.
        in_order: ask for its words next to each other.
    """
    heard = words_of(response)
    return any(_found(words_of(answer, gold=True), heard, in_order) for answer in answers)


def words_of(text: str, gold: bool = False) -> list[str]:
    """Words as they are compared; of a gold answer without articles, unless it is nothing else."""
    text = unicodedata.normalize("NFKD", text.replace("’", "'").replace("&", " and ").replace("%", " percent "))
    text = "".join(c for c in text if not unicodedata.combining(c)).lower()
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)  # 1,000 is one number
    text = re.sub(r"(\d+)(?:st|nd|rd|th)\b", r"\1", text)
    text = re.sub(r"\b(\w)\.(?=\w\b|\s|$)", r"\1", text)  # u.s.a.
    text = re.sub(r"'s\b|'", "", text)
    words = _numbers(_WORD.findall(text.replace("_", " ")))
    kept = [word for word in words if word not in ARTICLES] if gold else words
    return kept or words


def _found(gold: list[str], heard: list[str], in_order: bool) -> bool:
    if not gold:
        return False
    if not in_order:
        return set(gold) <= set(heard)
    spoken = [word for word in heard if word not in ARTICLES]
    return any(spoken[n : n + len(gold)] == gold for n in range(len(spoken) - len(gold) + 1))


def _numbers(words: list[str]) -> list[str]:
    """Words with every stretch of number words as digits."""
    made: list[str] = []
    at = 0
    while at < len(words):
        value, used = _year(words[at:])
        if not used:
            value, used = _number(words[at:])
        made.append(str(value) if used else words[at])
        at += max(1, used)
    return made


def _year(words: list[str]) -> tuple[int, int]:
    """A year as it is said, nineteen eighty four or twenty ten."""
    first, used = _number(words)
    second, more = _number(words[used:])
    if 0 < used <= 2 and 10 <= first <= 20 and more and 10 <= second <= 99 and words[used] != "and":
        return 100 * first + second, used + more
    return 0, 0


def _number(words: list[str]) -> tuple[int, int]:
    """The number that a list of words begins with, and how many words it takes; 0 of them where it begins with none."""
    total = group = used = 0
    last = 10**15
    for place, word in enumerate(words):
        if place == 0 and word == "a" and len(words) > 1 and words[1] in _SCALES:
            group = last = 1
            continue
        if word == "and" and used and last in _SCALES.values() and place + 1 < len(words) and _small(words[place + 1]):
            continue
        small = _small(word)
        scale = _SCALES.get(word) or _SCALES.get(word.removesuffix("th"))
        if small is not None and _fits(small, last):
            group, last = group + small, 1 if small < 20 else 10
        elif scale == 100 and 0 < group < 100:
            group, last = group * 100, 100
        elif scale and scale > 100 and group:
            total, group, last = total + group * scale, 0, scale
        else:
            break
        used = place + 1
        if word in _ORDINALS or word not in (*_UNITS, *_TENS, *_SCALES):
            break  # an ordinal ends a number
    return total + group, used


def _fits(small: int, last: int) -> bool:
    """Whether "seven" may follow what came before: twenty seven, but neither seven seven nor seventeen seven."""
    return last >= 100 or (last == 10 and 0 < small < 10)


def _small(word: str) -> int | None:
    """0 to 90, cardinal or ordinal."""
    if word in _UNITS or word in _TENS:
        return _UNITS.get(word, _TENS.get(word))
    if word in _ORDINALS and word != "second":  # a second is a time more often than a place
        return _ORDINALS[word]
    stem = word.removesuffix("th")
    if stem == word:
        return None
    return _UNITS.get(stem, _TENS.get(stem.removesuffix("ie") + "y"))
