"""Spoken StoryCloze and Topic-StoryCloze: does the story go on with its own ending? (https://arxiv.org/abs/2305.13009)

Four sentences and the fifth, against another: StoryCloze has the ending that people wrote to be wrong, Topic-StoryCloze that of a
random other story. Speech and text on either side: S->S, S->T, T->S, T->T. Following *Scaling Speech-Text Pre-training
with Synthetic Interleaved Data* the two parts are spoken by themselves, so that the same context is heard before both endings.
"""

from speechlm.evals.items import Item
from speechlm.evals.pairs import Mode, Pairs, Span


class StoryCloze(Pairs):
    """Pairs with a context, in all four modes; arguments as for `Pairs`."""

    def __init__(
        self,
        items: str,
        modes: list[Mode] = ["S->S", "S->T", "T->S", "T->T"],  # noqa: B006 - never changed
        per_token: list[bool] = [True, False],  # noqa: B006
        masked: list[bool] = [False, True],  # noqa: B006
        spans: list[Span] = ["ending", "whole"],  # noqa: B006
        tie_within: float = 1e-6,
        shard: int = 64,
        limit: int | None = None,
    ) -> None:
        super().__init__(items, modes, per_token, masked, spans, tie_within, shard, limit)

    def check(self, item: Item) -> str:
        """A story without a context is none."""
        return super().check(item) if item.get("context") else "no context"
