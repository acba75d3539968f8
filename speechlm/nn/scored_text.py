"""What a transcript is compared by: words, or characters where a language is written without blanks between words.

- The cut's language chooses: words for most, characters for those of `BY_CHARACTER`. Where none is known it is English.
- Case and punctuation do not count, nor what stands in brackets, nor whether a letter, digit or mark is full- or half-width.
- By character, blanks do not count either, and a foreign word inside is its letters: "用 iPhone" is 7 units, "T P P" is "TPP".
- By word, each character of such a script is a word of its own: "i like 北京" is 4 units.
- Nothing is converted: traditional and simplified characters, and digits and numerals (15, 十五), are different.
"""

import re
import unicodedata

from speechlm.nn.whisper_text import normalise

# Chinese, Japanese, Thai, Lao and Burmese, as in the Whisper paper; and Cantonese, Khmer and Tibetan, written alike.
BY_CHARACTER = frozenset(("zh", "yue", "ja", "th", "lo", "my", "km", "bo"))
_BRACKETS = re.compile(r"<[^>]*>|\[[^\]]*\]|【[^】]*】|\([^)]*\)")
# Han with its iteration marks, kana, Thai, Lao, Tibetan, Burmese, Khmer.
_OWN_WORD = re.compile(r"([\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
                       r"\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff])")  # fmt: skip


def is_by_character(language: str) -> bool:
    """Whether a language, such as "zh" or "zh-CN", is compared by character."""
    return language.lower().partition("-")[0] in BY_CHARACTER


def units_of(text: str, language: str = "en") -> list[str]:
    """The words or characters of a transcript, normalised."""
    code = language.lower().partition("-")[0] or "en"
    if code not in BY_CHARACTER:
        return _OWN_WORD.sub(r" \1 ", normalise(text, code)).split()
    text = _BRACKETS.sub("", unicodedata.normalize("NFKC", text)).lower()
    return [c for c in text if unicodedata.category(c)[0] in "LNM"]
