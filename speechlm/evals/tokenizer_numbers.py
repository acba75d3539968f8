"""Every number of the tokenizer report, as values that become its JSON and its schema."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from speechlm.evals.advice import Advice, advise, perplexity_share
from speechlm.evals.character_errors import character_error_rate
from speechlm.evals.codebook import CodebookStats, codebook_stats
from speechlm.evals.listening import Heard, Listening
from speechlm.evals.robustness import Robustness
from speechlm.evals.speaker_probe import SpeakerLeakage
from speechlm.evals.wer import ErrorRate, word_error_rate

SCHEMA = 2
SAMPLE_RATE_HZ = 16_000


@dataclass(frozen=True)
class Errors:
    """Error rates of one kind; `unquantised` is None where there is no such model to compare with."""

    through: ErrorRate
    unquantised: ErrorRate | None


@dataclass(frozen=True)
class Scores:
    """One held-out set, or one language over all sets.

    Attributes:
        languages: codes that occur, "" where none is known.
        recordings: how many.
        seconds: of speech.
        wer: words, or characters in a language written without blanks; by the language of most recordings.
        cer: letters, digits and marks, in any language.
        codebook: use of the codes.
        tokenize_x_real_time: seconds of speech tokenized per second, on `machine`; None for a language.
    """

    languages: list[str]
    recordings: int
    seconds: float
    wer: Errors
    cer: Errors
    codebook: CodebookStats
    tokenize_x_real_time: float | None


@dataclass(frozen=True)
class TokenizerNumbers:
    """The report.

    Attributes:
        schema: version of this form.
        run: name of the run, or of the released folder.
        whisper: what training started from.
        trained_languages: codes of the languages it was trained on, as far as its config says.
        token_rate_hz: tokens per second.
        codebook: over all recordings.
        sets: by name of the held-out set.
        languages: by code.
        advice: by code.
        speaker_leakage: None where fewer than two speakers have two recordings.
        robustness: by what was done to the sound; empty where it was not asked for.
        hours_trained: hours of speech heard in training, None where the run does not say.
        machine: hardware the speeds were measured on.
        code: commit that made the report, None outside of a repository.
    """

    schema: int
    run: str
    whisper: str
    trained_languages: list[str]
    token_rate_hz: float
    codebook: CodebookStats
    sets: dict[str, Scores]
    languages: dict[str, Scores]
    advice: dict[str, Advice]
    speaker_leakage: SpeakerLeakage | None
    robustness: dict[str, Robustness]
    hours_trained: float | None
    machine: dict[str, Any]
    code: dict[str, Any] | None


def scores(heard: list[Heard], num_codes: int, rate_hz: float, times_real_time: float | None = None) -> Scores:
    """What one group of recordings says.

    Raises:
        ValueError: no recording of the group has a transcript.
    """
    languages = [item.language for item in heard]
    main = max(sorted(set(languages)), key=languages.count) or "en"
    return Scores(
        languages=sorted(set(languages)),
        recordings=len(heard),
        seconds=sum(len(item.audio) for item in heard) / SAMPLE_RATE_HZ,
        wer=_errors(heard, lambda r, h: word_error_rate(r, h, main)),
        cer=_errors(heard, character_error_rate),
        codebook=codebook_stats([item.codes for item in heard], num_codes, rate_hz),
        tokenize_x_real_time=times_real_time,
    )


def set_scores(sets: Mapping[str, Listening], num_codes: int, rate_hz: float) -> dict[str, Scores]:
    """`Scores` of every held-out set."""
    return {name: scores(s.heard, num_codes, rate_hz, s.times_real_time) for name, s in sets.items()}


def by_language(heard: list[Heard]) -> dict[str, list[Heard]]:
    """Recordings by the code of their language, "" counting as English."""
    groups: dict[str, list[Heard]] = {}
    for item in heard:
        groups.setdefault(item.language or "en", []).append(item)
    return dict(sorted(groups.items()))


def advice_by_language(heard: list[Heard], trained: list[str], num_codes: int) -> dict[str, Advice]:
    """`advise` for every language among the recordings.

    Args:
        heard: all recordings.
        trained: codes of languages the tokenizer was trained on; where they occur, they are what codes are compared with.
        num_codes: V.
    """
    groups = by_language(heard)
    return {code: _advice(code, items, groups, trained, num_codes) for code, items in groups.items()}


def _advice(
    code: str, items: list[Heard], groups: dict[str, list[Heard]], trained: list[str], num_codes: int
) -> Advice:
    errors = _errors(items, lambda r, h: word_error_rate(r, h, code, clip=True))
    others: list[np.ndarray] = [h.codes for name in trained if name != code for h in groups.get(name, [])]
    share = perplexity_share([item.codes for item in items], others, num_codes)
    return advise(errors.through.rate, errors.unquantised.rate if errors.unquantised else None, share)


def _errors(heard: list[Heard], measure: Callable[[list[str], list[str]], ErrorRate]) -> Errors:
    references = [item.reference for item in heard]
    plain = [item.unquantised for item in heard if item.unquantised is not None]
    compared = measure(references, plain) if len(plain) == len(heard) else None
    return Errors(measure(references, [item.through for item in heard]), compared)
