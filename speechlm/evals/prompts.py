"""Prompts out of one-line templates, and what is said in an item as speech codes."""

from collections.abc import Mapping, Sequence

import numpy as np

from speechlm.evals.items import Item, Said, Unusable, load_audio
from speechlm.evals.parts import LM, Parts, Piece
from speechlm.evals.task import Place
from speechlm.tokens.templates import PIECE

RATE_HZ = 16_000
BEGIN, END = Piece("control", "<|begin_of_audio|>"), Piece("control", "<|end_of_audio|>")


def filled(template: str, slots: Mapping[str, Sequence[Piece]], lm: LM) -> list[Piece]:
    """A template with its slots filled in; what stands between slots and control tokens is text.

    Args:
        template: such as "<|user|>{question}<|assistant|>".
        slots: pieces by the slot's name.
        lm: whose text tokenizer encodes.

    Raises:
        ValueError: the template has a slot that is not given.
    """
    pieces: list[Piece] = []
    for part in filter(None, PIECE.split(template)):
        if part.startswith("<|"):
            pieces.append(Piece("control", part))
        elif PIECE.fullmatch(part):
            if part[1:-1] not in slots:
                raise ValueError(f"a template here has the slots {sorted(slots)}, got {template!r}")
            pieces += slots[part[1:-1]]
        else:
            pieces.append(Piece("text", lm.encode(part)))
    return pieces


def spoken(codes: Sequence[int]) -> list[Piece]:
    """Speech with its control tokens."""
    return [BEGIN, Piece("speech", list(codes)), END]


def written(text: str, lm: LM) -> list[Piece]:
    """Text; Unusable where it has no ids."""
    ids = lm.encode(text)
    if not ids:
        raise Unusable("empty text", repr(text))
    return [Piece("text", ids)]


class Codes:
    """Speech codes of what items say, tokenized together; asking for what could not be heard raises `Unusable`.

    Args:
        items: whose fields are said.
        fields: that are needed.
        parts: with the tokenizer, where something is audio.
        place: of the items.
    """

    def __init__(self, items: Sequence[Item], fields: Sequence[str], parts: Parts, place: Place) -> None:
        self.found: dict[tuple[str, str], list[int] | Unusable] = {}
        waiting: list[tuple[tuple[str, str], np.ndarray]] = []
        for item in items:
            for field in fields:
                if item.get(field) is not None:
                    self._take((item["id"], field), item[field], parts, place, waiting)
        if waiting:
            made = parts.tokens.tokenize([audio for _, audio in waiting])
            self.found |= {key: [int(c) for c in codes] for (key, _), codes in zip(waiting, made, strict=True)}

    def of(self, item: Item, field: str) -> list[int]:
        """Codes of a field.

        Raises:
            Unusable: there are none.
        """
        codes = self.found.get((item["id"], field), Unusable("nothing said", f"{item['id']} has no {field}"))
        if isinstance(codes, Unusable):
            raise codes
        if not codes:
            raise Unusable("no speech tokens", f"{item['id']}.{field}")
        return codes

    def _take(
        self,
        key: tuple[str, str],
        said: Said,
        parts: Parts,
        place: Place,
        waiting: list[tuple[tuple[str, str], np.ndarray]],
    ) -> None:
        try:
            if said.get("tokens") is not None:
                self.found[key] = _given(said, parts)
            elif said.get("audio"):
                waiting.append((key, load_audio(said, place.items, RATE_HZ)))
        except Unusable as error:
            self.found[key] = error


def _given(said: Said, parts: Parts) -> list[int]:
    made_by, wanted = said.get("made_by", ""), parts.hash_of("codes")
    if made_by and wanted and made_by != wanted:
        raise Unusable("tokens of another tokenizer", f"made by {made_by}, the model has {wanted}")
    return [int(code) for code in said["tokens"]]
