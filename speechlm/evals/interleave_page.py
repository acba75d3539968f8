"""The interleave report as a page: how much is spoken and in what pieces, what was refused, and documents to read and hear."""

from collections.abc import Callable
from typing import Any

import numpy as np

from speechlm.evals import pictures
from speechlm.evals.histogram import Histogram
from speechlm.evals.interleave_numbers import InterleaveNumbers, Sample, SourceNumbers
from speechlm.evals.report_page import Page, card, facts, highlighted, picture, plain, words
from speechlm.evals.resynthesis_page import sound

Speak = Callable[[np.ndarray], np.ndarray]  # (T,) codes -> (N,) float32 waveform
BY_FACTOR = ("spans in a document", "ids in a document", "words in a document")


def page(
    numbers: InterleaveNumbers,
    samples: dict[str, list[Sample]],
    speak: Speak | None = None,
    sample_rate_hz: int = 16_000,
    sounds: int = 8,
) -> Page:
    """The whole report.

    Args:
        numbers: of all sources.
        samples: documents to show, by source.
        speak: what makes spans heard; None leaves them to be read.
        sample_rate_hz: of what it makes.
        sounds: spans of each source that are heard.
    """
    documents = sum(source.counts.get("documents", 0) for source in numbers.sources.values())
    hours = sum(source.speech_seconds for source in numbers.sources.values()) / 3600
    made = Page("Interleaved documents", f"{documents:,} documents with {hours:,.2f} h of speech, as speech tokens.")
    made.heading(
        "How much is spoken", "Ids of text and of speech, and how many speech ids an id of spoken text came to."
    )
    made.table(*overview(numbers))
    for name, source in numbers.sources.items():
        _source(made, name, source)
        heard = _players(samples.get(name, []), speak, sample_rate_hz, sounds)
        _samples(made, name, samples.get(name, []), heard, source)
    return made


def overview(numbers: InterleaveNumbers) -> tuple[list[str], list[list[str]]]:
    """A line for every source."""
    header = ["source", "documents", "spans spoken", "left as text", "text ids", "speech ids", "hours"]
    header += ["of text spoken (asked)", "of ids speech", "speech ids per text id"]
    return header, [_line(name, source) for name, source in numbers.sources.items()]


def _line(name: str, source: SourceNumbers) -> list[str]:
    names = ("documents", "spoken", "left_as_text", "text_ids", "speech_ids")
    return [
        name if source.complete and not source.damaged else f"{name} (not complete)",
        *(f"{source.counts.get(count, 0):,}" for count in names),
        f"{source.speech_seconds / 3600:,.2f}",
        f"{source.spoken_share_of_text:.1%} ({source.asked_ratio:.0%})",
        f"{source.speech_share_of_ids:.1%}",
        f"{source.speech_ids_per_text_id:.2f}",
    ]


def rejects(source: SourceNumbers) -> tuple[list[str], list[list[str]]]:
    """What was left out, and why."""
    spans, documents = source.counts.get("spans", 0), source.counts.get("documents_in", 0)
    rows = [["span left as text", *_row(reason, n, spans)] for reason, n in source.spans_left_as_text.items()]
    rows += [["document left out", *_row(reason, n, documents)] for reason, n in source.documents_left_out.items()]
    rows += [["characters left out", *_row(reason, n, 0)] for reason, n in source.units_left_out.items()]
    rows += [["shard not read", why, name, ""] for name, why in source.damaged.items()]
    return ["what", "why", "how many", "share"], rows


def _row(reason: str, count: int, of: int) -> list[str]:
    return [reason, f"{count:,}", f"{count / of:.2%}" if of else ""]


def _source(made: Page, name: str, source: SourceNumbers) -> None:
    retries = source.counts.get("retries", 0)
    made.heading(
        f"{name}: what was refused", f"{retries:,} generations were tried again before they counted or were given up."
    )
    header, rows = rejects(source)
    made.table(header, rows or [["nothing", "", "0", ""]])
    made.heading(f"{name}: lengths", _lengths_note(source))
    made.cards([_bars(what, histogram) for what, histogram in source.histograms.items()])
    made.heading(f"{name}: where it comes from")
    made.table(["what", "which"], _flat("", source.provenance))


def _flat(name: str, value: Any) -> list[list[str]]:
    """Names and values, those of values inside values after theirs."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _flat(f"{name}.{key}" if name else key, inner)]
    return [[name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)]]


def _lengths_note(source: SourceNumbers) -> str:
    if not source.documents_without_text:
        return f"Of {source.shards} shards. Words are counted in the source texts."
    why = f" ({source.texts_missing})" if source.texts_missing else ""
    return (
        f"Of {source.shards} shards. The source text of {source.documents_without_text} documents is not there any more{why}: "
        f"their words are not counted."
    )


def _bars(what: str, histogram: Histogram) -> str:
    image = pictures.bars(histogram.edges, histogram.counts, what, log=what in BY_FACTOR)
    said = f"mean {_said(histogram.mean)}, median {_said(histogram.median)}, largest {_said(histogram.largest)}"
    return card(words(what[0].upper() + what[1:]), picture(image, f"histogram of {what}"), words(said))


def _said(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _players(samples: list[Sample], speak: Speak | None, rate_hz: int, sounds: int) -> dict[tuple[int, int], str]:
    """Players of the first spans, as many of every sample, by sample and piece."""
    if speak is None:
        return {}
    spans = [[n for n, piece in enumerate(sample.pieces) if piece.codes is not None] for sample in samples]
    turns = sorted((turn, s, n) for s, of_sample in enumerate(spans) for turn, n in enumerate(of_sample))
    made = {}
    for _, s, n in turns[:sounds]:
        codes = samples[s].pieces[n].codes
        assert codes is not None
        made[s, n] = sound(speak(codes), rate_hz)
    return made


def _samples(
    made: Page, name: str, samples: list[Sample], heard: dict[tuple[int, int], str], source: SourceNumbers
) -> None:
    note = "What is spoken is on a coloured ground."
    made.heading(
        f"{name}: documents", note if samples else "No document can be shown: their source texts are not there."
    )
    made.cards([_sample(n, sample, heard, source) for n, sample in enumerate(samples)], grid=False)


def _sample(number: int, sample: Sample, heard: dict[tuple[int, int], str], source: SourceNumbers) -> str:
    pieces = [(piece.text, piece.codes is not None) for piece in sample.pieces] + (
        [(" …", False)] if sample.cut else []
    )
    rate_hz = source.provenance["token_rate_hz"]
    sounds = []
    for n, piece in enumerate(sample.pieces):
        if (number, n) in heard and piece.codes is not None:
            length = f"{len(piece.codes)} speech ids, {len(piece.codes) / rate_hz:.1f} s"
            sounds.append((plain(length), f"{plain(piece.text)}<br>{heard[number, n]}"))
    return card(words(sample.id), highlighted(pieces), facts(sounds) if sounds else "")
