"""Every number of the interleave report, counted shard by shard: memory does not grow with the corpus."""

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datamodules.interleaved import Interleaved
from datamodules.interleaved_folder import InterleavedFolder, Texts
from speechlm.evals.histogram import Counting, Histogram
from speechlm.tokens.interleave import words_of
from speechlm.tokens.keyed import key_of

SCHEMA = 1
SHOWN_CHARS = 1500  # of a sample

TextIds = Callable[[list[str]], list[int]]  # spans as they are written -> ids of text that each is asked with


@dataclass(frozen=True)
class SourceNumbers:
    """One source's interleaved documents.

    Attributes:
        complete: whether every shard was made.
        shards: how many were read.
        damaged: shards that were not, and why.
        documents_without_text: whose source text is not what it was; they are in no count of words.
        texts_missing: why source texts could not be read, "" where they could.
        counts: of documents, spans and ids, as the job counted.
        documents_left_out: by reason.
        spans_left_as_text: by reason.
        units_left_out: characters that are in no document, by reason.
        asked_ratio: share of the words that was to be spoken.
        spoken_share_of_text: ids of the text that is spoken, of all ids the text had.
        speech_share_of_ids: of all ids of the documents.
        speech_ids_per_text_id: of spoken text.
        speech_seconds: of all spans.
        histograms: by what is counted.
        provenance: what the documents were made with.
    """

    complete: bool
    shards: int
    damaged: dict[str, str]
    documents_without_text: int
    texts_missing: str
    counts: dict[str, int]
    documents_left_out: dict[str, int]
    spans_left_as_text: dict[str, int]
    units_left_out: dict[str, int]
    asked_ratio: float
    spoken_share_of_text: float
    speech_share_of_ids: float
    speech_ids_per_text_id: float
    speech_seconds: float
    histograms: dict[str, Histogram]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class InterleaveNumbers:
    """The report.

    Attributes:
        schema: version of this form.
        sources: by the name of the source's folder.
        code: commit that made the report, None outside of a repository.
    """

    schema: int
    sources: dict[str, SourceNumbers]
    code: dict[str, Any] | None


@dataclass(frozen=True)
class Piece:
    """A stretch of a sample's text; `codes` are those it is spoken as, None where it is text."""

    text: str
    codes: np.ndarray | None


@dataclass(frozen=True)
class Sample:
    """The beginning of a document."""

    id: str
    pieces: list[Piece]
    cut: bool  # whether the document goes on


def bins() -> dict[str, Counting]:
    """What is counted, by name."""
    lengths = np.unique(np.geomspace(1, 10_000_000, 85).round())  # twelve bins to a factor of ten
    return {
        "words in a span": Counting(np.arange(81)),
        "characters in a span": Counting(np.arange(0, 401, 5)),
        "speech ids in a span": Counting(np.arange(0, 401, 4)),
        "speech ids per id of text, by span": Counting(np.arange(0, 15.1, 0.25)),
        "speech ids per character, by span": Counting(np.arange(0, 3.01, 0.05)),
        "spans in a document": Counting(lengths),
        "ids in a document": Counting(lengths),
        "words in a document": Counting(lengths),
        "share of a document's ids that is speech": Counting(np.arange(0, 1.01, 0.025)),
        "share of a document's words that is spoken": Counting(np.arange(0, 1.01, 0.025)),
    }


@dataclass
class Survey:
    """Counts a source's documents as they come by, and keeps a few of them to be shown.

    Args:
        samples: documents that are kept; which, depends on their ids alone.
        text_ids: counts ids of text, where the tokenizer is at hand.
    """

    samples: int
    text_ids: TextIds | None = None
    counted: dict[str, Counting] = field(default_factory=bins)
    without_text: int = 0
    _kept: list[tuple[int, int, Sample]] = field(default_factory=list)
    _seen: int = 0

    def add(self, document: Interleaved, text: str | None) -> None:
        """One more document."""
        speech = [len(ids) for kind, ids in document.parts if kind == "speech"]
        ids = sum(len(ids) for _, ids in document.parts)
        self._count("speech ids in a span", speech)
        self._count("spans in a document", [len(speech)])
        self._count("ids in a document", [ids])
        self._count("share of a document's ids that is speech", [sum(speech) / max(1, ids)])
        if text is None:
            self.without_text += 1
        else:
            self._add_words(document, text, np.array(speech))
            self._keep(document, text)

    def _add_words(self, document: Interleaved, text: str, speech: np.ndarray) -> None:
        spans = [
            text[a:b]
            for (kind, _), (a, b) in zip(document.parts, document.chars or [], strict=True)
            if kind == "speech"
        ]
        words, all_words = [len(words_of(span)) for span in spans], len(words_of(text))
        self._count("words in a span", words)
        self._count("words in a document", [all_words])
        self._count("share of a document's words that is spoken", [sum(words) / max(1, all_words)])
        chars = np.array([len(span.strip()) for span in spans])
        self._count("characters in a span", chars)
        self._count("speech ids per character, by span", speech / np.maximum(1, chars))
        if self.text_ids is not None and spans:
            self._count("speech ids per id of text, by span", speech / np.maximum(1, self.text_ids(spans)))

    def _count(self, name: str, values: Any) -> None:
        self.counted[name].add(values)

    def _keep(self, document: Interleaved, text: str) -> None:
        """Keep the documents with the smallest keys, among those that are spoken in part."""
        if not self.samples or not any(kind == "speech" for kind, _ in document.parts):
            return
        key = -key_of("sample", document.id)
        if len(self._kept) < self.samples or key > self._kept[0][0]:
            self._seen += 1
            heapq.heappush(self._kept, (key, -self._seen, sample_of(document, text)))
            if len(self._kept) > self.samples:
                heapq.heappop(self._kept)

    def shown(self) -> list[Sample]:
        """The documents that were kept."""
        return [sample for _, _, sample in sorted(self._kept, reverse=True)]


def sample_of(document: Interleaved, text: str) -> Sample:
    """A document's beginning, whole parts of it where they are not too long."""
    pieces, room = list[Piece](), SHOWN_CHARS
    for (kind, ids), (start, end) in zip(document.parts, document.chars or [], strict=True):
        if room <= 0:
            return Sample(document.id, pieces, cut=True)
        shown = end if kind == "speech" else min(end, start + room)
        pieces.append(Piece(text[start:shown], ids if kind == "speech" else None))
        room -= end - start
    return Sample(document.id, pieces, cut=room < 0)


def survey(
    folder: InterleavedFolder, samples: int = 6, shards: int | None = None, text_ids: TextIds | None = None
) -> tuple[SourceNumbers, list[Sample]]:
    """Read a source's shards once and count.

    Args:
        folder: of the source.
        samples: documents to show.
        shards: read so many at most.
        text_ids: how many ids of text each span is asked with, where the tokenizer is at hand.
    """
    seen, texts = Survey(samples, text_ids), Texts(folder)
    counts, reasons, read = Counter[str](), Counter[str](), 0
    for shard in folder.shards(shards):
        try:
            for document, text in texts.of(shard):
                seen.add(document, text)
        except ValueError as error:
            folder.damaged[shard.path.name] = str(error)
            continue
        counts.update(shard.counts)
        reasons.update(shard.reasons)
        read += 1
    return _numbers(folder, seen, texts.missing, counts, reasons, read), seen.shown()


def _numbers(
    folder: InterleavedFolder, seen: Survey, missing: str, counts: Counter[str], reasons: Counter[str], shards: int
) -> SourceNumbers:
    making, job = folder.making(), folder.job
    spoken, speech = counts["spoken_text_ids"], counts["speech_ids"]
    return SourceNumbers(
        complete=folder.complete,
        shards=shards,
        damaged=folder.damaged,
        documents_without_text=seen.without_text,
        texts_missing=missing,
        counts=dict(counts),
        documents_left_out=_of(reasons, "document"),
        spans_left_as_text=_of(reasons, "span"),
        units_left_out=_of(reasons, "unit"),
        asked_ratio=float(job["settings"]["ratio"]),
        spoken_share_of_text=spoken / max(1, spoken + counts["text_ids"]),
        speech_share_of_ids=speech / max(1, speech + counts["text_ids"]),
        speech_ids_per_text_id=speech / max(1, spoken),
        speech_seconds=speech / making.token_rate_hz if making else 0.0,
        histograms={name: one.histogram() for name, one in seen.counted.items() if one.counts.any()},
        provenance={
            "files": len(job["files"]),
            "paths": job["source"]["paths"],
            "settings": job["settings"],
            "sampling": job["sampling"],
            "model": job["model"],
            "vocab_hash": job["vocab_hash"],
            "text_tokenizer": job["text_tokenizer"],
            "speech_tokenizer": making.speech_tokenizer if making else "",
            "token_rate_hz": making.token_rate_hz if making else 0.0,
        },
    )


def _of(reasons: Mapping[str, int], kind: str) -> dict[str, int]:
    """The reasons of one kind, most frequent first."""
    of_kind = {name.removeprefix(f"{kind}: "): n for name, n in reasons.items() if name.startswith(f"{kind}: ")}
    return dict(sorted(of_kind.items(), key=lambda item: (-item[1], item[0])))
