"""What every engine promises: prompts of ids in, generated ids out, in whatever order they get done."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

Finish = Literal["stop", "length", "invalid"]


@dataclass(frozen=True)
class Sampling:
    """How the next id is drawn.

    Args:
        temperature: 0 takes the likeliest id.
        top_k: draw among so many likeliest ids; 0 among all.
        top_p: draw among the likeliest ids that together have this probability.
        seed: with a prompt's key it decides every draw, where the engine's own arithmetic allows.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1, got {self.temperature}, {self.top_k}, "
                f"{self.top_p}"
            )


@dataclass(frozen=True)
class Target:
    """The ids that may be generated: `count` of them from `first` on, and the one that ends a generation.

    Every other id is impossible, so a control token or a piece of text can never turn up among speech.
    """

    first: int
    count: int
    stop: int

    def __contains__(self, shared_id: int) -> bool:
        return self.first <= shared_id < self.first + self.count or shared_id == self.stop


class Prompt(NamedTuple):
    """One piece of work."""

    key: str  # names the prompt: unique in a call, decides its random draws, comes back with the result
    ids: tuple[int, ...]  # shared ids of `Vocab`
    max_new: int  # ids at most, the stop id not counted
    min_new: int = 0  # ids before the stop id is possible


class Generation(NamedTuple):
    """What became of one prompt."""

    key: str
    ids: tuple[int, ...]  # without the stop id
    finish: Finish  # "invalid": the engine gave ids that were not asked for, which are not handed on


class Engine(Protocol):
    """Generates for many prompts at once.

    Attributes:
        max_length: ids that a prompt and what is generated for it may have together.
    """

    max_length: int

    def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[Generation]:
        """Yield one generation per prompt, in any order; prompts are drawn as room for them appears.

        Raises:
            ValueError: a prompt has ids outside the vocabulary, or does not fit.
        """
        ...


def check_prompt(prompt: Prompt, vocab_size: int, max_length: int) -> None:
    """Refuse what an engine could not survive.

    Raises:
        ValueError: naming the prompt, what came and what fits.
    """
    if not prompt.ids:
        raise ValueError(f"prompt {prompt.key!r} is empty; it needs at least one id to go on from")
    worst = max(prompt.ids) if min(prompt.ids) >= 0 else min(prompt.ids)
    if not 0 <= worst < vocab_size:
        raise ValueError(f"prompt {prompt.key!r} has id {worst}, outside [0, {vocab_size})")
    if prompt.max_new < 1 or prompt.min_new > prompt.max_new:
        raise ValueError(
            f"prompt {prompt.key!r} asks for {prompt.min_new} to {prompt.max_new} new ids; nothing fits that"
        )
    if len(prompt.ids) + prompt.max_new > max_length:
        raise ValueError(
            f"prompt {prompt.key!r} has {len(prompt.ids)} ids and may grow by {prompt.max_new}, more than the {max_length} the "
            f"engine has room for; shorten it or raise the engine's max_length"
        )
