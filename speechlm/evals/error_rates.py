"""Error rates of transcripts as metrics: the sum of errors over the sum of words, by language."""

from collections.abc import Sequence

from speechlm.evals.bootstrap import ratio
from speechlm.evals.task import Metric
from speechlm.evals.wer import word_errors
from speechlm.nn.scored_text import is_by_character


def error_metrics(
    references: Sequence[str],
    hypotheses: Sequence[str],
    languages: Sequence[str],
    name: str = "",
    groups: Sequence[str] | None = None,
    clip: bool = False,
) -> list[Metric]:
    """WER, or CER in a language written without blanks, of every language and group; references without a word do not count.

    Args:
        references: transcripts.
        hypotheses: what is compared.
        languages: code of each; "" counts as English.
        name: of what was heard, before the metric's.
        groups: such as the part of a corpus, for a metric each.
        clip: count errors of one recording up to its words only.
    """
    rows: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for n, (reference, hypothesis, code) in enumerate(zip(references, hypotheses, languages, strict=True)):
        errors, words = word_errors(reference, hypothesis, code or "en")
        if words:
            key = (code or "en", groups[n] if groups else "")
            rows.setdefault(key, []).append((min(errors, words) if clip else errors, words))
    return [_metric(name, key, counted, clip) for key, counted in sorted(rows.items())]


def _metric(name: str, key: tuple[str, str], counted: list[tuple[int, int]], clip: bool) -> Metric:
    language, group = key
    kind = "CER" if is_by_character(language) else "WER"
    said = " ".join(part for part in (name, kind, language, group, "clipped" if clip else "") if part)
    errors, words = zip(*counted, strict=True)
    return ratio(said, errors, words, "%", "lower", 100.0)
