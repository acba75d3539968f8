"""Sequences of the four kinds of training data: what surrounds text and speech, and what of it is to be predicted."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from speechlm.tokens.interleave import assemble
from speechlm.tokens.vocab import Vocab

Kind = Literal["text", "speech", "asr", "tts", "interleaved"]
SLOTS = ("{text}", "{speech}", "{parts}", "{voice}")
PIECE = re.compile(r"(\{\w*\}|<\|\w+\|>)")


@dataclass(frozen=True)
class Template:
    """How a document is written, in two strings; only the target is predicted.

    In both, ``{text}``, ``{speech}`` and ``{parts}`` (text and speech in turns) are the document's own, ``{voice}``, which may be
    left out, is the name of who speaks, ``{end}`` is the text tokenizer's end of text, names such as ``<|user|>`` are control
    tokens of the vocabulary or else special tokens of the text tokenizer, and everything else is text. What is in a document's
    own text is never read as any of these.

    Args:
        target: what is predicted.
        prompt: what stands before it.
    """

    target: str
    prompt: str = ""


#: The paper (arXiv 2411.17607) predicts all tokens, of pairs the target only; the wording of its prompts is not published.
TEMPLATES: dict[Kind, Template] = {
    "text": Template("{text}{end}"),
    "speech": Template("<|begin_of_audio|>{speech}<|end_of_audio|>{end}"),
    "asr": Template(
        "{text}{end}", "<|user|>Transcribe the speech.<|begin_of_audio|>{speech}<|end_of_audio|><|assistant|>"
    ),
    "tts": Template(
        "<|begin_of_audio|>{speech}<|end_of_audio|>{end}", "<|user|>Read the text aloud: {text}<|assistant|>"
    ),
    "interleaved": Template("{parts}{end}"),
}
NEEDS: dict[Kind, set[str]] = {
    "text": {"{text}"},
    "speech": {"{speech}"},
    "asr": {"{text}", "{speech}"},
    "tts": {"{text}", "{speech}"},
    "interleaved": {"{parts}"},
}
#: Slots that a template of a kind may have besides.
VOICED: dict[Kind, set[str]] = {kind: {"{voice}"} if kind in ("asr", "tts") else set() for kind in NEEDS}


class Written(NamedTuple):
    """A document as the model sees it."""

    ids: np.ndarray  # (N,) int64 shared ids
    target: int  # position where the target begins: from there on ids are predicted
    spans: tuple[tuple[int, int], ...] | None = None  # [begin, end) to predict, where not all behind `target` are


class Writer:
    """Writes documents of one kind by a template.

    Args:
        kind: of the documents; says which slots the template must have.
        template: None is the kind's own in `TEMPLATES`.
        vocab: of the result.
        encode: text to text-tokenizer ids; sees only the template's own words.
        specials: special tokens of the text tokenizer by name, for templates that name them.
        end: text-tokenizer id of the end of text, None where the tokenizer has none.
        boundaries: put control tokens around the speech of ``{parts}``.

    Raises:
        ValueError: the template lacks a slot, or names a token that does not exist.
    """

    def __init__(
        self,
        kind: Kind,
        template: Template | None,
        vocab: Vocab,
        encode: Callable[[str], Sequence[int]],
        specials: Mapping[str, int] | None = None,
        end: int | None = None,
        boundaries: bool = True,
    ) -> None:
        if kind not in TEMPLATES:
            raise ValueError(f"kind must be one of {', '.join(TEMPLATES)}, got {kind!r}")
        template = template or TEMPLATES[kind]
        self.vocab, self.encode, self.specials = vocab, encode, specials or {}
        self.end, self.boundaries = end, boundaries
        self.prompt, self.target = self._parsed(template.prompt), self._parsed(template.target)
        slots = [part for part in self.prompt + self.target if isinstance(part, str)]
        self.voiced = "{voice}" in slots
        if set(slots) - VOICED[kind] != NEEDS[kind] or len(slots) > len(set(slots)):
            raise ValueError(
                f"a template of kind {kind!r} has {' and '.join(sorted(NEEDS[kind]))} once each and no other slot, got {template}"
            )

    def write(
        self,
        text: np.ndarray | None = None,
        speech: np.ndarray | None = None,
        parts: Sequence[tuple[str, np.ndarray]] = (),
        voice: str = "",
    ) -> Written:
        """The document's sequence.

        Args:
            text: text-tokenizer ids, for ``{text}``.
            speech: codes, for ``{speech}``.
            parts: ("text", ids) and ("speech", codes) in order, for ``{parts}``.
            voice: who speaks, for ``{voice}``.

        Raises:
            ValueError: an id or a code is out of range, or the template wants a voice and there is none.
        """
        slots: dict[str, Callable[[], np.ndarray]] = {
            "{text}": lambda: assemble([("text", _given(text))], self.vocab),
            "{speech}": lambda: assemble([("speech", _given(speech))], self.vocab, boundaries=False),
            "{parts}": lambda: assemble(parts, self.vocab, self.boundaries),
            "{voice}": lambda: self._voice(voice),
        }
        prompt, target = (
            [slots[part]() if isinstance(part, str) else part for part in side] for side in (self.prompt, self.target)
        )
        return Written(np.concatenate([*prompt, *target]), sum(map(len, prompt)))

    def opening(self, text: np.ndarray, voice: str = "") -> np.ndarray:
        """All ids before ``{speech}``: what a text-to-token model goes on from.

        Args:
            text: text-tokenizer ids, for ``{text}``.
            voice: who is to speak, for ``{voice}``.

        Raises:
            ValueError: the template wants a voice and there is none.
        """
        parts = self.prompt + self.target
        before = parts[: self._speech_at(parts)]
        slots = {"{text}": lambda: assemble([("text", text)], self.vocab), "{voice}": lambda: self._voice(voice)}
        return np.concatenate([slots[part]() if isinstance(part, str) else part for part in before])

    @property
    def closing(self) -> int:
        """The id right behind ``{speech}``: where a text-to-token model stops.

        Raises:
            ValueError: the template has nothing there.
        """
        parts = self.prompt + self.target
        behind = [part for part in parts[self._speech_at(parts) + 1 :] if isinstance(part, np.ndarray)]
        if not behind:
            raise ValueError(
                "the template ends with {speech}, so nothing says where the speech ends; put {end} behind it"
            )
        return int(behind[0][0])

    def _voice(self, name: str) -> np.ndarray:
        if not name:
            raise ValueError("the template has {voice}, and nothing says who speaks")
        return np.array(self.encode(name), np.int64)

    @staticmethod
    def _speech_at(parts: list[str | np.ndarray]) -> int:
        return next(n for n, part in enumerate(parts) if isinstance(part, str) and part == "{speech}")

    def _parsed(self, written: str) -> list[str | np.ndarray]:
        """A template's string as slots and the ids between them."""
        parts = [piece for piece in PIECE.split(written) if piece]
        return [piece if piece in SLOTS else np.array(self._ids(piece), np.int64) for piece in parts]

    def _ids(self, piece: str) -> list[int]:
        if piece in self.vocab.controls:
            return [self.vocab.control(piece)]
        if piece in self.specials:
            return [self.specials[piece]]
        if piece == "{end}":
            if self.end is None:
                raise ValueError("the text tokenizer has no end of text, so a template can not name {end}")
            return [self.end]
        if PIECE.fullmatch(piece):
            raise ValueError(
                f"a template names {piece}; there are {', '.join((*SLOTS, '{end}', *self.vocab.controls, *self.specials))}"
            )
        return list(self.encode(piece))


def _given(values: np.ndarray | None) -> np.ndarray:
    assert values is not None, "a document of this kind has text and speech for every slot"
    return values
