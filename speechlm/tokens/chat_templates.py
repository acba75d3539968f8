"""What a conversation looks like to the model: chat templates by name, for training and for talking alike.

A reply is text and speech in turns ("streaming thoughts", arXiv 2412.02612: 13 ids of text, 26 of speech), speech alone, or text
alone. Its end is the first id of what stands behind it, so what was said becomes the past of the next turn as it is.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from speechlm.tokens.interleave import assemble
from speechlm.tokens.templates import PIECE, Written
from speechlm.tokens.vocab import Vocab

Role = Literal["system", "user", "assistant"]
Loss = Literal["all", "text", "speech"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
SAID = "{said}"


class Turn(NamedTuple):
    """What one side said."""

    role: Role
    parts: tuple[tuple[str, np.ndarray], ...]  # ("text", text-tokenizer ids) and ("speech", codes), in order


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation is written, in strings.

    Names such as ``<|user|>`` are control tokens of the vocabulary or else special tokens of the text tokenizer, ``{said}`` is
    what a turn says, and everything else is text. What is said is never read as any of these.

    Args:
        user: a turn of the user, with ``{said}``.
        assistant: what stands before a reply.
        close: what stands behind a reply; its first id ends the reply. What the next turn begins with counts as written.
        system: a turn of instructions, with ``{said}``.
        begin: what a conversation begins with.
        text_block: ids of text in a block of a reply; 0 in replies of speech alone.
        speech_block: ids of speech in a block; 0 in replies of text alone.
        boundaries: put control tokens around the speech of the user.
        instructions: what the system says where a conversation brings nothing, by how the user speaks: "speech" or "text".

    Raises:
        ValueError: a string lacks ``{said}``, nothing closes a reply, or blocks are negative or both 0.
    """

    user: str = "<|user|>{said}"
    assistant: str = "<|assistant|>"
    close: str = "<|user|>"
    system: str = "<|system|>{said}"
    begin: str = ""
    text_block: int = 13
    speech_block: int = 26
    boundaries: bool = True
    instructions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.user.count(SAID) != 1 or self.system.count(SAID) != 1 or not self.close:
            raise ValueError(f"`user` and `system` have {SAID} once each and `close` is not empty, got {self}")
        if min(self.text_block, self.speech_block) < 0 or not self.text_block + self.speech_block:
            raise ValueError(
                f"a reply has blocks of text, of speech or of both, got {self.text_block}:{self.speech_block}"
            )


_GLM4VOICE_SAYS = (
    "User will provide you with a {kind} instruction. Do it step by step. First, think about the instruction and respond in a "
    "interleaved manner, with 13 text token followed by 26 audio tokens."
)
#: `glm4voice` is the released model's, its instructions to the letter (the one for speech ends with a space).
CHAT_TEMPLATES: dict[str, ChatTemplate] = {
    "plain": ChatTemplate(),
    "plain_speech": ChatTemplate(text_block=0, speech_block=1),
    "plain_text": ChatTemplate(text_block=1, speech_block=0),
    "chatml": ChatTemplate(
        "<|im_start|>user\n{said}<|im_end|>\n",
        "<|im_start|>assistant\n",
        "<|im_end|>\n",
        "<|im_start|>system\n{said}<|im_end|>\n",
    ),
    "glm4voice": ChatTemplate(
        "<|user|>\n{said}",
        "<|assistant|>streaming_transcription\n",
        "<|user|>",
        "<|system|>\n{said}",
        "[gMASK]<sop>",
        instructions={
            "speech": _GLM4VOICE_SAYS.format(kind="speech") + " ",
            "text": _GLM4VOICE_SAYS.format(kind="text"),
        },
    ),
}


def named_template(name: str, text_block: int | None = None, speech_block: int | None = None) -> ChatTemplate:
    """A template of `CHAT_TEMPLATES`, with other blocks where it has blocks of both kinds.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in CHAT_TEMPLATES:
        raise ValueError(f"there is no chat template {name!r}; there are {', '.join(CHAT_TEMPLATES)}")
    template = CHAT_TEMPLATES[name]
    if not template.text_block or not template.speech_block:
        return template
    return replace(
        template,
        text_block=template.text_block if text_block is None else text_block,
        speech_block=template.speech_block if speech_block is None else speech_block,
    )


class Chat:
    """Writes conversations by a template.

    Args:
        template: see `ChatTemplate`.
        vocab: of the result.
        encode: text to text-tokenizer ids; sees only the template's own words and instructions.
        specials: special tokens of the text tokenizer by name, for templates that name them.

    Attributes:
        end: the shared id that ends a reply.
        text_block: see `ChatTemplate`.
        speech_block: likewise.

    Raises:
        ValueError: the template names a token that neither the vocabulary nor the text tokenizer has.
    """

    def __init__(
        self,
        template: ChatTemplate,
        vocab: Vocab,
        encode: Callable[[str], Sequence[int]],
        specials: Mapping[str, int] | None = None,
    ) -> None:
        self.template, self.vocab, self.encode, self.specials = template, vocab, encode, specials or {}
        self.text_block, self.speech_block = template.text_block, template.speech_block
        self._around = {
            "system": [self._ids(part) for part in template.system.split(SAID)],
            "user": [self._ids(part) for part in template.user.split(SAID)],
            "assistant": [self._ids(template.assistant), np.zeros(0, np.int64)],
        }
        self._begin, self._close = self._ids(template.begin), self._ids(template.close)
        self.end = int(self._close[0])

    # -- talking -------------------------------------------------------------------------------------------------------

    def prompt(self, turns: Sequence[Turn]) -> np.ndarray:
        """(N,) shared ids up to where the reply begins.

        Raises:
            ValueError: an id or a code is out of range, or the last turn is a reply.
        """
        if not turns or turns[-1].role == "assistant":
            raise ValueError("there is nothing to reply to: the conversation does not end with a turn of the user")
        written = self._written(turns)
        return np.concatenate([*(ids for ids, _ in written), self._around["assistant"][0]])

    # -- training ------------------------------------------------------------------------------------------------------

    def conversation(self, turns: Sequence[Turn], loss: Loss = "all") -> Written:
        """A whole conversation, of which the replies and their ends are predicted.

        Args:
            turns: that end with a reply; what replies are made of is written in the order they have, see `reply`.
            loss: "text" and "speech" predict the ids of one kind alone; a reply's end belongs to the kind before it.

        Raises:
            ValueError: an id or a code is out of range, or there is no reply.
        """
        if not turns or turns[-1].role != "assistant":
            raise ValueError("a conversation to learn from ends with a reply")
        written = [*self._written(turns), (np.array([self.end]), None)]
        ids = np.concatenate([one for one, _ in written])
        predicted = np.concatenate([np.full(len(one), reply is not None) for one, reply in written])
        predicted |= np.concatenate([[False], predicted[:-1]])  # and the end behind each reply
        if loss != "all":
            speech = self.vocab.is_speech(ids)
            behind = np.concatenate([[False], speech[:-1]])
            own = np.isin(ids, [self.end]) & ~speech
            predicted &= np.where(own, behind, speech) == (loss == "speech")
        edges = np.flatnonzero(np.diff(np.concatenate([[0], predicted, [0]])))
        spans = tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))
        return Written(ids, spans[0][0] if spans else len(ids), spans)

    def reply(self, text: np.ndarray, speech: np.ndarray) -> Turn:
        """A reply in the form of the template: blocks of text and speech in turns until the text ends, then the speech's rest.

        Args:
            text: (L,) text-tokenizer ids.
            speech: (T,) codes of the same words.

        Raises:
            ValueError: the speech ends before the text does, so it can not be the speech of it.
        """
        k, m = self.text_block, self.speech_block
        if not k or not m:
            return Turn("assistant", (("text", text),) if k else (("speech", speech),))
        blocks = max(1, -(-len(text) // k))
        if blocks > 1 and len(speech) <= (blocks - 1) * m:
            raise ValueError(
                f"a reply's {len(speech)} speech tokens end before its {len(text)} ids of text in blocks of {k}:{m}"
            )
        parts: list[tuple[str, np.ndarray]] = []
        for n in range(blocks):
            parts.append(("text", text[n * k : (n + 1) * k]))
            parts.append(("speech", speech[n * m : (n + 1) * m if n + 1 < blocks else None]))
        return Turn("assistant", tuple(parts))

    def instructed(self, turns: Sequence[Turn]) -> list[Turn]:
        """The turns, with the template's own instructions in front where they bring none."""
        first = next((turn for turn in turns if turn.role == "user"), None)
        if first is None or any(turn.role == "system" for turn in turns):
            return list(turns)
        said = self.template.instructions.get("speech" if any(kind == "speech" for kind, _ in first.parts) else "text")
        if not said:
            return list(turns)
        return [Turn("system", (("text", np.array(self.encode(said), np.int64)),)), *turns]

    # -- the parts -----------------------------------------------------------------------------------------------------

    def _written(self, turns: Sequence[Turn]) -> list[tuple[np.ndarray, Role | None]]:
        """Ids in order, what a reply says apart from everything else."""
        made: list[tuple[np.ndarray, Role | None]] = [(self._begin, None)]
        close = np.zeros(0, np.int64)
        for turn in turns:
            if turn.role not in ROLES:
                raise ValueError(f"a turn is of {', '.join(ROLES)}, got {turn.role!r}")
            before, behind = self._around[turn.role]
            said = assemble(turn.parts, self.vocab, self.template.boundaries and turn.role != "assistant")
            made.append((_joined(close, before), None))
            made.append((said, "assistant" if turn.role == "assistant" else None))
            made.append((behind, None))
            close = self._close if turn.role == "assistant" else close[:0]
        return made

    def _ids(self, written: str) -> np.ndarray:
        """A string's names and words as ids."""
        known = sorted((*self.specials, *self.vocab.controls), key=len, reverse=True)
        names = re.compile(f"({'|'.join((*map(re.escape, known), PIECE.pattern[1:-1]))})")
        return np.array([i for piece in names.split(written) if piece for i in self._piece(piece)], np.int64)

    def _piece(self, piece: str) -> list[int]:
        if piece in self.vocab.controls:
            return [self.vocab.control(piece)]
        if piece in self.specials:
            return [self.specials[piece]]
        if PIECE.fullmatch(piece):
            raise ValueError(
                f"the chat template names {piece}; there are {', '.join((*self.vocab.controls, *self.specials))}"
            )
        return list(self.encode(piece))


def _joined(close: np.ndarray, opening: np.ndarray) -> np.ndarray:
    """What closes a reply, and what opens the next turn, the ids that are both written once."""
    shared = min(len(close), len(opening))
    if shared and (close[:shared] == opening[:shared]).all():
        return np.concatenate([close, opening[shared:]])
    return np.concatenate([close, opening])
