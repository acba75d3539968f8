"""Words of some languages, characters of others, and nothing that a listener can not hear."""

import pytest

from speechlm.evals.wer import error_rates, marked_words, word_error_rate
from speechlm.nn.scored_text import is_by_character, units_of


@pytest.mark.parametrize(
    ("text", "language", "units"),
    [
        ("而 对 楼市", "zh", list("而对楼市")),
        ("你好，世界！「好」。", "zh-CN", list("你好世界好")),
        ("ＡＢ１２％", "zh", list("ab12")),
        ("（笑声）好【注】的", "zh", list("好的")),
        ("用 iPhone", "zh", list("用iphone")),
        ("ｶﾀｶﾅー々", "ja", list("カタカナー々")),
        ("ที่นี่ ครับ", "th", list("ที่นี่ครับ")),
        ("食飯未呀？", "yue", list("食飯未呀")),
        ("I like 北京.", "en", ["i", "like", "北", "京"]),
        ("The colour", "", ["the", "color"]),
        ("Où est l'été ?", "fr", ["où", "est", "l", "été"]),
        ("Ещё раз", "ru", ["ещё", "раз"]),
        ("안녕 하세요", "ko", ["안녕", "하세요"]),
        ("", "zh", []),
    ],
)
def test_a_transcript_is_compared_by_these(text: str, language: str, units: list[str]):
    assert units_of(text, language) == units


def test_the_language_alone_says_by_what():
    assert all(map(is_by_character, ["zh", "zh-TW", "ZH", "ja", "th", "yue"]))
    assert not any(map(is_by_character, ["en", "", "ko", "de", "zha"]))


def test_width_punctuation_and_blanks_cost_nothing_and_a_wrong_character_costs_one():
    references = ["我住在北京，二〇一五年。", "ＣＰＵ很快"]
    same = word_error_rate(references, ["我 住 在 北京 二〇一五年", "C P U 很快！"], language="zh")
    assert (same.errors, same.words, same.metric) == (0, 15, "cer")
    wrong = word_error_rate(references, ["我住在南京二〇一五年", "cpu很"], language="zh")
    assert (wrong.errors, wrong.words) == (2, 15)


def test_every_language_of_a_set_has_its_own_rate():
    references, heard = ["red car", "你好", "...", "drei"], ["red cat", "你坏", "x", "drei"]
    rates = error_rates(references, heard, ["en", "zh", "fr", "de"])
    assert {code: (rate.metric, rate.rate) for code, rate in rates.items()} == {
        "en": ("wer", 0.5), "zh": ("cer", 0.5), "de": ("wer", 0.0),
    }  # fmt: skip
    assert error_rates(["a b"], ["a"], [""]).keys() == {"en"}


def test_wrong_characters_are_marked_where_they_stand():
    assert marked_words("你好，世界", "你坏世", "zh") == [("你", False), ("坏", True), ("世", False), ("∅", True)]
