"""Documents of text, speech, pairs and interleaved parts as sequences of ids, by a template."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from datamodules.documents import Raw, Unusable, read_documents
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.templates import NEEDS, Kind, Template, Written
from speechlm.tokens.vocab import Vocab

Texts = list[np.ndarray] | None


class Scribe(Protocol):
    """Reads documents of one kind, and writes them as ids."""

    def read(self, path: Path) -> Iterator[Any]:
        """Documents of a file, in order; each has an `id`."""
        ...

    def encoded(self, documents: list[Any]) -> list[Texts]:
        """Ids of each document's texts in order; None where a text gives a special token."""
        ...

    def write(self, document: Any, texts: Texts) -> Written:
        """A document's sequence.

        Raises:
            Unusable: it has none.
        """
        ...


class DocumentScribe:
    """Writes all kinds but dialogues.

    Args:
        kind: of the documents.
        template: None is the kind's own.
        boundaries: put control tokens around the speech of interleaved documents.
        fields: names of text and id in .jsonl and .parquet.
        vocab: of the ids.
        tokenizer: of text.
        row_len: longer pairs are not used.
        reader: reads the text of interleaved documents, which another text tokenizer made; None where it is `tokenizer`.
    """

    def __init__(
        self,
        kind: Kind,
        template: Template | None,
        boundaries: bool,
        fields: tuple[str, str],
        vocab: Vocab,
        tokenizer: TextTokenizer,
        row_len: int,
        reader: TextTokenizer | None = None,
    ) -> None:
        self.kind, self.fields, self.tokenizer, self.row_len, self.reader = kind, fields, tokenizer, row_len, reader
        self.writer = tokenizer.writer(kind, template, vocab, boundaries)

    def read(self, path: Path) -> Iterator[Raw]:
        """See `Scribe.read`."""
        documents = read_documents(path, self.kind, *self.fields)
        return documents if self.reader is None else (as_text(document, self.reader) for document in documents)

    def encoded(self, documents: list[Raw]) -> list[Texts]:
        """See `Scribe.encoded`."""
        texts = [[value for _, value in raw.parts if isinstance(value, str)] or [raw.text] for raw in documents]
        return encode_all(self.tokenizer, texts)

    def write(self, document: Raw, texts: Texts) -> Written:
        """See `Scribe.write`."""
        needs = NEEDS[self.kind]
        if document.problem:
            raise Unusable(document.problem, document.detail)
        if texts is None:
            raise Unusable("special token", "its text gives a special token of the text tokenizer")
        if "{text}" in needs and not (document.text.strip() and len(texts[0])):
            raise Unusable("no text")
        if "{speech}" in needs and not len(document.speech):
            raise Unusable("no tokens")
        if self.writer.voiced and not document.voice:
            raise Unusable("no voice", "the template has {voice}, and the cut has no speaker")
        left = iter(texts)
        parts = [(kind, next(left) if isinstance(value, str) else value) for kind, value in document.parts]
        if "{parts}" in needs and not any(len(ids) for _, ids in parts):
            raise Unusable("no parts")
        try:
            written = self.writer.write(texts[0] if texts else None, document.speech, parts, document.voice)
        except ValueError as error:
            raise Unusable("id out of range", str(error)) from None
        if self.kind in ("asr", "tts") and len(written.ids) > self.row_len:
            raise Unusable("pair longer than a row", f"{len(written.ids)} ids")
        return written


def as_text(document: Raw, reader: TextTokenizer) -> Raw:
    """An interleaved document with strings for ids of text; a problem where what they say is not certain."""
    is_ids = [kind == "text" and not isinstance(value, str) for kind, value in document.parts]
    ids = [value for (_, value), wanted in zip(document.parts, is_ids, strict=True) if wanted]
    try:
        texts = reader.decode(ids)
        again = reader.encode(texts)
    except ValueError as error:
        return replace(document, parts=[], problem="unreadable text", detail=str(error))
    if any(not np.array_equal(one, other) for one, other in zip(again, ids, strict=True)):
        return replace(document, parts=[], problem="unreadable text", detail="its ids are not those of what they say")
    left = iter(texts)
    parts = [
        (kind, next(left) if wanted else value) for (kind, value), wanted in zip(document.parts, is_ids, strict=True)
    ]
    return replace(document, parts=parts)


def encode_all(tokenizer: TextTokenizer, texts: Sequence[Sequence[str]]) -> list[Texts]:
    """Ids of each document's texts; None where a text gives a special token."""
    try:
        encoded = iter(tokenizer.encode(list(itertools.chain.from_iterable(texts))))
        return [[next(encoded) for _ in one] for one in texts]
    except ValueError:
        return [_encoded_alone(tokenizer, one) for one in texts]


def _encoded_alone(tokenizer: TextTokenizer, texts: Sequence[str]) -> Texts:
    try:
        return tokenizer.encode(texts)
    except ValueError:
        return None
