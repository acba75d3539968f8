"""What can not be the speech of a text is told from what can, repetitions above all."""

import random

import pytest

from speechlm.engines.base import Generation
from speechlm.engines.checks import SpeechChecks, longest_run, loops

CHECKS = SpeechChecks()


def problem(ids: list[int], finish: str = "stop", text_ids: int = 5) -> str:
    return CHECKS.problem(text_ids, Generation("a", tuple(ids), finish))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "finish", "said"),
    [
        (list(range(20)), "stop", ""),
        (list(range(20)), "length", "no end"),
        ([], "invalid", "not speech"),
        (list(range(4)), "stop", "too short"),
        ([*range(5), *[7] * 25, *range(5)], "stop", ""),
        ([*range(5), *[7] * 26, *range(5)], "stop", "stuck"),
        ([*range(5), *[7, 8] * 5, *range(5)], "stop", "loop"),
        ([*range(5), *[7, 8] * 4, *range(5)], "stop", ""),
        ([*range(5), *list(range(30, 42)) * 5], "stop", "loop"),
        ([*range(5), *list(range(30, 43)) * 5], "stop", ""),
    ],
)
def test_a_generation_is_judged_by_its_end_its_length_and_its_repetitions(ids: list[int], finish: str, said: str):
    assert problem(ids, finish) == said


def test_no_repetition_is_overlooked_for_being_looked_for_fast():
    seen = set()
    for seed in range(3000):
        draw = random.Random(seed)
        kinds = draw.choice([2, 3, 5, 20, 200])
        ids = draw.choices(range(kinds), k=draw.randint(5, 40))
        if seed % 2:
            ids[8:8] = draw.choices(range(kinds), k=draw.randint(1, 13)) * draw.randint(1, 30)
        slowly = "stuck" if longest_run(ids) > CHECKS.max_run else "loop" if loops(ids, CHECKS.max_repeats) else ""
        assert problem(ids) == slowly
        seen.add(slowly)
    assert seen == {"", "stuck", "loop"}
