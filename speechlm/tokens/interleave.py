"""Which stretches of a text are spoken: the span plan of interleaved data, and the sequence that comes of it.

"Scaling Speech-Text Pre-training with Synthetic Interleaved Data" (arXiv 2411.17607): span lengths are drawn from Poisson(10)
until they add up to 0.3 of the document, and laid at random places in it. The plan is a pure function of document, epoch and
seed: it is the same in every process, needs no state, and is drawn anew in every epoch.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from speechlm.tokens.keyed import key_of, uniform
from speechlm.tokens.vocab import Vocab

#: Scripts written without spaces, where each character is a unit: Thai, Lao, Khmer, kana, bopomofo, Han and its extensions.
UNSPACED = (
    "\u0e00-\u0eff\u1780-\u17ff\u3040-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
#: A unit is one such character with the marks and closing punctuation behind it, or a run of others; space before it is its own.
WORD = re.compile(
    rf"\s*(?:[{UNSPACED}](?:[\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]|[\u3001\u3002\uff01-\uff0f\uff1a-\uff20\u300b\u300d\u300f\u2019\u201d])*"
    rf"|[^\s{UNSPACED}]+)"
)


@dataclass(frozen=True)
class Document:
    """A text that may be spoken in parts.

    Args:
        id: tells it from every other document; the plan depends on it and on the number of units, not on the words.
        text: all of it.
        units: (start, end) characters of what spans are counted in, in order; None is `words_of(text)`. Pass the words of a
            segmenter, or the offsets of a tokenizer's tokens, to count in those.
    """

    id: str
    text: str
    units: Sequence[tuple[int, int]] | None = None


class Span(NamedTuple):
    """Characters [start, end) of a document's text, to be spoken."""

    start: int
    end: int


class Segment(NamedTuple):
    """Characters [start, end) of a document's text, as text or as speech."""

    kind: Literal["text", "speech"]
    start: int
    end: int


def words_of(text: str) -> list[tuple[int, int]]:
    """Words with the space before them, and single characters of scripts that write no spaces."""
    return [match.span() for match in WORD.finditer(text)]


def _units(text: str) -> Sequence[tuple[int, int]] | np.ndarray:
    """`words_of`, several times as fast where every script writes spaces: (U, 2) starts and ends."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[codes]
    if not len(kinds) or kinds.max() == 2:
        return words_of(text)
    ends = np.flatnonzero((kinds == 0) & (np.append(kinds[1:], 1) == 1)) + 1
    return np.stack([np.append(0, ends[:-1]), ends], axis=1) if len(ends) else []


@lru_cache(maxsize=1)
def _kinds() -> np.ndarray:
    """(0x110000,) uint8: 1 for space, 2 for characters of `UNSPACED`, 0 for all others."""
    kinds = np.zeros(0x110000, np.uint8)
    kinds[[code for code in range(0x10000) if chr(code).isspace()]] = 1
    for first, last in zip(UNSPACED[::3], UNSPACED[2::3], strict=True):
        kinds[ord(first) : ord(last) + 1] = 2
    return kinds


def plan(document: Document, epoch: int, seed: int, ratio: float = 0.3, mean_span: float = 10.0) -> list[Span]:
    """The spans of a document that are spoken, in order; between any two lies at least one unit of text.

    Lengths, in units, are drawn from Poisson(mean_span) until they add up to `ratio` of the document, so the share is a little
    above `ratio` in short documents. Draws of 0 have no effect. What would leave no text at all is cut off the last draws. All
    ways to lay the spans are equally likely.

    Args:
        document: id, text and units.
        epoch: pass over the corpus, each has a plan of its own.
        seed: of the run.
        ratio: share of the units that is spoken, 0 to 1.
        mean_span: mean of the span lengths, in units.

    Raises:
        ValueError: ratio or mean_span are out of range.
    """
    if not 0 <= ratio <= 1 or not 0 < mean_span < 700:
        raise ValueError(
            f"ratio must be in [0, 1] and mean_span above 0 and below 700, got {ratio} and {mean_span}; edit the config"
        )
    units = _units(document.text) if document.units is None else document.units
    key = key_of("spans", document.id, epoch, seed)
    lengths = _lengths(len(units), key, ratio, mean_span)
    spans, begin = [], 0
    for gap, length in zip(_gaps(len(units), lengths, key_of("gaps", key)), lengths, strict=True):
        begin += gap
        spans.append(Span(int(units[begin][0]), int(units[begin + length - 1][1])))
        begin += length
    return spans


def segments(text: str, spans: Sequence[Span]) -> list[Segment]:
    """The whole text, cut at the spans: joined in order they are the text, no character lost or doubled."""
    made: list[Segment] = []
    done = 0
    for span in spans:
        made += [Segment("text", done, span.start)] if done < span.start else []
        made.append(Segment("speech", span.start, span.end))
        done = span.end
    return made + ([Segment("text", done, len(text))] if done < len(text) else [])


def assemble(parts: Sequence[tuple[str, np.ndarray]], vocab: Vocab, boundaries: bool = True) -> np.ndarray:
    """One sequence of shared ids from text ids and speech codes.

    Args:
        parts: ("text", text-tokenizer ids) and ("speech", codes), in order.
        vocab: the bridge.
        boundaries: put ``<|begin_of_audio|>`` and ``<|end_of_audio|>`` around speech.

    Returns:
        (S,) int64.

    Raises:
        ValueError: an id or a code is out of range, or a part is neither text nor speech.
    """
    begin, end = (np.array([vocab.control(name)]) for name in ("<|begin_of_audio|>", "<|end_of_audio|>"))
    ids: list[np.ndarray] = [np.zeros(0, np.int64)]
    for kind, values in parts:
        ids += _part(kind, np.asarray(values, np.int64), vocab, [begin, end] if boundaries else [])
    return np.concatenate(ids)


def _part(kind: str, values: np.ndarray, vocab: Vocab, around: list[np.ndarray]) -> list[np.ndarray]:
    if kind == "text":
        return [vocab.text_to_ids(values)]
    if kind == "speech":
        return [*around[:1], vocab.speech_to_ids(values), *around[1:]]
    raise ValueError(f"a part of an interleaved document is 'text' or 'speech', got {kind!r}")


def _lengths(units: int, key: int, ratio: float, mean_span: float) -> list[int]:
    """Span lengths in units, none 0, that fit with a unit between them and leave one of text."""
    target = ratio * units
    lengths: list[int] = []
    total = 0
    for length in _poisson(mean_span, key, round(1.2 * target / mean_span) + 8):
        if total >= target:
            break
        lengths += [length] if length else []
        total += length
    while lengths and (excess := _excess(lengths, units)) > 0:
        lengths[-1] -= min(lengths[-1], excess)
        lengths = lengths if lengths[-1] else lengths[:-1]
    return lengths


def _excess(lengths: list[int], units: int) -> int:
    """Units that are missing to lay spans of these lengths apart, and one unit of text."""
    return sum(lengths) + max(1, len(lengths) - 1) - units


def _poisson(mean: float, key: int, chunk: int) -> Iterator[int]:
    """Endless Poisson draws, by inversion."""
    start = 0
    while True:
        yield from np.searchsorted(_poisson_cdf(mean), uniform(key, chunk, start), side="right").tolist()
        start += chunk


@lru_cache(maxsize=16)
def _poisson_cdf(mean: float) -> np.ndarray:
    """P(X <= k) for k = 0, 1, … to beyond the last double below 1."""
    term, total, table = float(np.exp(-mean)), 0.0, []
    for k in range(int(mean + 40 * mean**0.5 + 60)):
        total += term
        table.append(total)
        term *= mean / (k + 1)
    return np.array(table[:-1])


def _gaps(units: int, lengths: list[int], key: int) -> list[int]:
    """Units of text before each span: a uniformly chosen way to lay the spans, at least one unit between two."""
    count = len(lengths)
    slack = units - sum(lengths) - max(0, count - 1)
    chosen = _choose(count, slack + count, key)
    gaps = np.diff(np.concatenate([[-1], chosen])) - 1
    gaps[1:] += 1
    return gaps.tolist()


def _choose(count: int, size: int, key: int) -> np.ndarray:
    """(count,) distinct numbers below `size`, ascending, every set equally likely (Floyd's sampling)."""
    chosen: set[int] = set()
    for top, u in zip(range(size - count, size), uniform(key, count).tolist(), strict=True):
        pick = int(u * (top + 1))
        chosen.add(top if pick in chosen else pick)
    return np.array(sorted(chosen), np.int64)
