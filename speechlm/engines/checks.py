"""Whether generated speech can be the speech of a text, by what can be seen without listening."""

from collections.abc import Sequence
from dataclasses import dataclass

from speechlm.engines.base import Generation


@dataclass(frozen=True)
class SpeechChecks:
    """Bounds on speech ids per id of text, and on repetition.

    Ordinary reading has about 3.8 ids per id of text at 12.5 ids a second; the bounds are for very short texts too, whose ends
    have a share of silence.

    Args:
        min_per_text_id: fewer speech ids than this per id of text are too short.
        max_per_text_id: more are too long; generation stops there.
        spare: speech ids on top of `max_per_text_id`, silence at the ends.
        max_run: the same id so often in a row is a model that got stuck; 25 are two seconds.
        max_repeats: the same few ids (up to 12) so often in a row are a loop.
    """

    min_per_text_id: float = 1.0
    max_per_text_id: float = 10.0
    spare: int = 25
    max_run: int = 25
    max_repeats: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.min_per_text_id < self.max_per_text_id or min(self.spare, self.max_run, self.max_repeats) < 1:
            raise ValueError(
                f"0 <= min_per_text_id < max_per_text_id and positive spare, max_run and max_repeats must hold, got {self}"
            )

    def max_new(self, text_ids: int) -> int:
        """Ids that a generation for so many ids of text may have."""
        return int(self.max_per_text_id * text_ids) + self.spare

    def min_new(self, text_ids: int) -> int:
        """Ids below which a generation is too short."""
        return max(1, int(self.min_per_text_id * text_ids))

    def problem(self, text_ids: int, generation: Generation) -> str:
        """Why a generation can not be used, "" where it can."""
        if generation.finish == "invalid":
            return "not speech"
        if generation.finish == "length":
            return "no end"
        if len(generation.ids) < self.min_new(text_ids):
            return "too short"
        # Ids that stood there before; every repetition needs some.
        again = len(generation.ids) - len(set(generation.ids))
        if again >= self.max_run and longest_run(generation.ids) > self.max_run:
            return "stuck"
        return "loop" if loops(generation.ids, self.max_repeats, min(12, again // max(1, self.max_repeats - 1))) else ""


def longest_run(ids: Sequence[int]) -> int:
    """Length of the longest stretch of one id."""
    longest = run = 0
    for before, now in zip([None, *ids], ids, strict=False):
        run = run + 1 if now == before else 1
        longest = max(longest, run)
    return longest


def loops(ids: Sequence[int], repeats: int, longest: int = 12) -> bool:
    """Whether two to `longest` ids, not all of them equal, stand `repeats` times or more in a row somewhere."""
    for period in range(2, longest + 1):
        same = 0
        for here in range(period, len(ids)):
            same = same + 1 if ids[here] == ids[here - period] else 0
            if same >= period * (repeats - 1) and len(set(ids[here - period + 1 : here + 1])) > 1:
                return True
    return False
