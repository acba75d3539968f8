"""Texts as they are read aloud: what needs words gets them, and nothing a text has can hold the process up."""

import time

import pytest

from speechlm.spoken_text import LONGEST_SAID, speakable, spoken


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("  two   words\n", "two words"),
        ("in 1984, Mr. Smith paid $3.50", "in nineteen eighty four, Mister Smith paid three point five dollars"),
        ('a "13" and 4" wide', 'a "thirteen" and four" wide'),
        ('said "1960"!', 'said "nineteen sixty"!'),
        ("no odd words at all", "no odd words at all"),
    ],
)
def test_numbers_money_and_abbreviations_are_said(written: str, said: str):
    assert spoken(written, "en") == said


def test_chinese_numbers_are_said():
    assert spoken("共有25人", "zh") == "共有二十五人"


@pytest.mark.parametrize("text", ["w" * 300_000, "1" * 300_000, "a=" * 150_000, '"' * 300_000, '5"' * 100_000 + "x"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_word_of_any_length_is_passed_on_in_no_time(text: str, language: str):
    spoken("1", language)  # the grammar is read
    begun = time.process_time()
    assert len(spoken(text, language)) >= LONGEST_SAID
    speakable(text)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a few words, said: plainly!", ""),
        ("我们，去吧。", ""),
        (" -- ... ", "no words"),
        ("see https://a.b/c", "not speakable"),
        ("{[<>]} ==> x", "not speakable"),
        ("a.,;:!?.,;:!?.,;:!?", "not speakable"),
        ("___ _a_ ___", "not speakable"),
    ],
)
def test_what_has_no_words_or_is_no_prose_is_left_alone(text: str, why: str):
    assert speakable(text) == why
