"""Ids of one reply as they are generated: what engines for conversations promise, and which ids a reply may have where."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Literal, NamedTuple, Protocol

from speechlm.engines.base import Sampling

End = Literal["stop", "length", "invalid", "interrupted"]


class EngineFailed(RuntimeError):
    """An engine died, or gave no id for too long."""


class EngineBusy(RuntimeError):
    """An engine has as many sequences waiting as it takes."""


class Kind(IntFlag):
    """What an id of a reply is."""

    NONE = 0
    TEXT = 1
    SPEECH = 2
    END = 4


@dataclass(frozen=True)
class ReplyForm:
    """How a reply is made of text and speech.

    With text, blocks of `text_block` ids of text and `speech_block` ids of speech take turns. A block of text that ends early, or
    is left out, says that there is no more text: all that follows is speech, up to the end. A reply has at least one id.

    Args:
        end: the shared id that ends a reply.
        text_block: ids of text in a block; 0 for replies of speech alone.
        speech_block: ids of speech in a block; 0 for replies of text alone.
        whole_blocks: no block ends early, and a reply ends at the end of one only: for measuring models that have learnt nothing.

    Raises:
        ValueError: both are 0, or one is negative.
    """

    end: int
    text_block: int = 13
    speech_block: int = 26
    whole_blocks: bool = False

    def __post_init__(self) -> None:
        if min(self.text_block, self.speech_block) < 0 or not self.text_block + self.speech_block:
            raise ValueError(
                f"a reply has blocks of text, of speech or of both, got {self.text_block}:{self.speech_block}"
            )

    @property
    def kinds(self) -> Kind:
        """What occurs in such a reply at all."""
        return (Kind.TEXT if self.text_block else Kind.NONE) | (Kind.SPEECH if self.speech_block else Kind.NONE)

    def begin(self) -> "Progress":
        """A reply that has no id yet."""
        return Progress(self)


class Progress:
    """Where in its form a reply is."""

    def __init__(self, form: ReplyForm) -> None:
        self.form = form
        self.block = Kind.TEXT if form.text_block else Kind.SPEECH  # that the last id was in
        self.count = 0  # ids of this block
        self.total = 0
        self.text_over = not form.text_block

    @property
    def allowed(self) -> Kind:
        """What may come next."""
        form, end = self.form, Kind.END if self.total else Kind.NONE
        if not form.speech_block:
            return Kind.TEXT | end
        if self.text_over:
            return Kind.SPEECH | end
        full = self.count >= (form.text_block if self.block is Kind.TEXT else form.speech_block)
        if form.whole_blocks and not full:
            return self.block
        if self.block is Kind.TEXT:
            return (Kind.NONE if full else Kind.TEXT) | (Kind.SPEECH if self.count else Kind.NONE)
        return Kind.SPEECH | end | (Kind.TEXT if full else Kind.NONE)

    def take(self, kind: Kind) -> None:
        """The next id is of this kind."""
        form = self.form
        if form.text_block and form.speech_block and not self.text_over and kind is Kind.SPEECH:
            early = self.block is Kind.TEXT and self.count < form.text_block
            left_out = self.block is Kind.SPEECH and self.count >= form.speech_block
            self.text_over = early or left_out
        self.count = self.count + 1 if kind is self.block else 1
        self.block = kind
        self.total += 1


class Ask(NamedTuple):
    """One reply to be generated."""

    key: str  # decides its random draws, with the seed
    ids: Sequence[int]  # shared ids of all that came before
    form: ReplyForm
    sampling: Sampling
    max_new: int  # ids at most, the end not counted


class IdStream(Protocol):
    """Ids of a reply as they come, each of them text or speech; the id that ends it is not among them.

    Attributes:
        end: how it ended, "" while it has not.
    """

    end: End | Literal[""]

    def __iter__(self) -> "IdStream": ...

    def __next__(self) -> int:
        """The next id; waits for it.

        Raises:
            StopIteration: there are no more.
            EngineFailed: the engine died, or has given nothing for too long.
        """
        ...

    def close(self) -> None:
        """No more ids are wanted; from any thread, and more than once if need be."""
        ...


class StreamingEngine(Protocol):
    """Generates replies of several conversations at once.

    Attributes:
        max_length: ids that a prompt and its reply may have together.
    """

    max_length: int

    def open(self, ask: Ask) -> IdStream:
        """Begin a reply.

        Raises:
            ValueError: the prompt has ids outside the vocabulary, or does not fit.
            EngineBusy: too many are waiting.
            EngineFailed: there is no engine to be reached.
        """
        ...

    def close(self) -> None:
        """End all replies, and let go of threads and connections."""
        ...
