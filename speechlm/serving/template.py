"""What a conversation looks like to the model: the promise of a chat template, and the plain one."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np

from speechlm.tokens.interleave import assemble
from speechlm.tokens.vocab import Vocab

Role = Literal["system", "user", "assistant"]


class Turn(NamedTuple):
    """What one side said."""

    role: Role
    parts: tuple[tuple[str, np.ndarray], ...]  # ("text", text-tokenizer ids) and ("speech", codes), in order


class ChatTemplate(Protocol):
    """Turns a conversation into ids, and says how its reply is made."""

    text_block: int  # ids of text in a block of a reply, 0 in replies of speech alone
    speech_block: int  # ids of speech in a block, 0 in replies of text alone
    end: int  # the shared id that ends a reply

    def prompt(self, turns: Sequence[Turn]) -> np.ndarray:
        """(N,) shared ids up to where the reply begins."""
        ...


class PlainChat:
    """Roles as control tokens with what was said behind them, speech between its own; a reply ends with ``<|user|>``.

    Args:
        vocab: with controls for the roles.
        text_block: see `ChatTemplate`.
        speech_block: likewise.
    """

    def __init__(self, vocab: Vocab, text_block: int = 13, speech_block: int = 26) -> None:
        self.vocab, self.text_block, self.speech_block = vocab, text_block, speech_block
        self.end = vocab.control("<|user|>")

    def prompt(self, turns: Sequence[Turn]) -> np.ndarray:
        """See `ChatTemplate.prompt`."""
        said = [self._written(turn) for turn in turns]
        return np.concatenate([*said, np.array([self.vocab.control("<|assistant|>")])])

    def _written(self, turn: Turn) -> np.ndarray:
        ids = assemble(turn.parts, self.vocab, boundaries=turn.role != "assistant")
        return np.concatenate([[self.vocab.control(f"<|{turn.role}|>")], ids])
