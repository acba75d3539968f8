"""The vocabulary: one id space for text, speech units and control tokens, and the only bridge between them."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from speechlm.files import write_text_atomic

Ids = TypeVar("Ids", Tensor, np.ndarray)

#: Control tokens in the order of their ids. New ones are appended, so that old ids never move.
CONTROLS = (
    "<|begin_of_audio|>",
    "<|end_of_audio|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|pad|>",
)


class OtherVocab(ValueError):
    """Data or weights were made with another vocabulary than the one at hand."""


@dataclass(frozen=True)
class Vocab:
    """Text ids first, then control ids, then speech ids: `[0, T) [T, T + C) [T + C, T + C + S)`.

    Ids are numbers (offset + code), never look-ups of strings, so a text tokenizer that happens to know ``<|audio_7|>`` as a
    string, or a user who types it, can not produce a speech token.

    Args:
        num_text: size of the text tokenizer's id space, its own specials included.
        num_speech: size of the speech codebook.
        controls: control tokens, in the order of their ids.
        text_tokenizer: what tells one text tokenizer from another (a name or a fingerprint); part of the hash.
        speech_tokenizer: likewise for the speech tokenizer.

    Raises:
        ValueError: a size is not positive or a control token is listed twice.
    """

    num_text: int
    num_speech: int
    controls: tuple[str, ...] = CONTROLS
    text_tokenizer: str = ""
    speech_tokenizer: str = ""

    def __post_init__(self) -> None:
        if self.num_text < 0 or self.num_speech <= 0:
            raise ValueError(
                f"a vocabulary needs num_text >= 0 and num_speech > 0, got {self.num_text} and {self.num_speech}"
            )
        if len(set(self.controls)) != len(self.controls):
            raise ValueError(f"every control token may be listed once, got {list(self.controls)}")

    @property
    def speech_offset(self) -> int:
        """The shared id of speech code 0."""
        return self.num_text + len(self.controls)

    def __len__(self) -> int:
        return self.speech_offset + self.num_speech

    def control(self, name: str) -> int:
        """The shared id of a control token.

        Raises:
            ValueError: there is no such control token; the message lists those that exist.
        """
        if name not in self.controls:
            raise ValueError(f"no control token {name!r}; this vocabulary has {list(self.controls)}")
        return self.num_text + self.controls.index(name)

    def speech_to_ids(self, codes: Ids) -> Ids:
        """Speech codes in [0, num_speech) to shared ids, any shape, a tensor or an array.

        Raises:
            ValueError: a code is out of range.
        """
        self._check(codes, self.num_speech, "speech code")
        return codes + self.speech_offset

    def text_to_ids(self, text_tokens: Ids) -> Ids:
        """Text-tokenizer ids in [0, num_text) to shared ids (the identity, checked), any shape, a tensor or an array."""
        self._check(text_tokens, self.num_text, "text id")
        return text_tokens

    def is_speech(self, ids: Ids) -> Ids:
        """Which shared ids are speech, bool of the same shape."""
        return (ids >= self.speech_offset) & (ids < len(self))

    def is_text(self, ids: Ids) -> Ids:
        """Which shared ids are text, bool of the same shape."""
        return (ids >= 0) & (ids < self.num_text)

    def ids_to_speech(self, ids: Ids) -> Ids:
        """Shared ids, all of them speech, to codes.

        Raises:
            ValueError: an id is not speech.
        """
        codes = ids - self.speech_offset
        self._check(codes, self.num_speech, "speech code")
        return codes

    @staticmethod
    def speech_name(code: int) -> str:
        """How a speech code is written where ids must be strings, as in the released models."""
        return f"<|audio_{code}|>"

    @property
    def hash(self) -> str:
        """16 hex digits over everything that gives an id its meaning; travels with rows, checkpoints and exports."""
        canonical = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def require(self, other_hash: str, where: str) -> None:
        """Refuse data or weights made with another vocabulary.

        Raises:
            OtherVocab: naming both sides.
        """
        if other_hash != self.hash:
            raise OtherVocab(
                f"{where} was made with vocabulary {other_hash}, this run has {self.hash} ({self}); "
                f"the same id would mean different things: use the run's own vocab.json or make the data again"
            )

    def save(self, path: str | Path) -> None:
        """Write as JSON with the hash beside the values."""
        write_text_atomic(path, json.dumps({**asdict(self), "hash": self.hash}, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Vocab":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no vocabulary, or its values do not give its hash.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            written = fields.pop("hash")
            vocab = cls(**{**fields, "controls": tuple(fields["controls"])})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is no vocabulary that can be read ({type(error).__name__}: {error})") from error
        vocab.require(written, str(path))
        return vocab

    @staticmethod
    def _check(values: Ids, limit: int, what: str) -> None:
        bad = (values < 0) | (values >= limit)
        if bad.any():
            raise ValueError(f"{what} {int(values[bad][0])} is outside [0, {limit})")
