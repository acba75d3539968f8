"""The tables of the tokenizer report, as texts, for the page and the terminal alike."""

from speechlm.evals.codebook import CodebookStats
from speechlm.evals.robustness import Robustness
from speechlm.evals.tokenizer_numbers import Errors, TokenizerNumbers
from speechlm.evals.wer import ErrorRate

Table = tuple[list[str], list[list[str]]]  # header, rows
ABSENT = "–"


def set_table(numbers: TokenizerNumbers) -> Table:
    """Errors of every held-out set, with and without the bottleneck."""
    header = ["held-out set", "language", "recordings", "WER unquantised", "WER through tokens", "CER through tokens"]
    rows = []
    for name, scores in numbers.sets.items():
        speed = ABSENT if scores.tokenize_x_real_time is None else f"{scores.tokenize_x_real_time:.0f}"
        languages = ", ".join(filter(None, scores.languages)) or ABSENT
        errors = [*_pair(scores.wer), str(scores.cer.through)]
        rows.append([name, languages, str(scores.recordings), *errors, speed])
    return [*header, "× real time"], rows


def brief_table(numbers: TokenizerNumbers) -> Table:
    """Errors of every held-out set, without intervals, for a terminal."""
    header = ["held-out set", "recordings", "WER unquantised", "WER through tokens", "CER through tokens"]
    rows = []
    for name, scores in numbers.sets.items():
        rates = (scores.wer.unquantised, scores.wer.through, scores.cer.through)
        rows.append([name, str(scores.recordings), *map(_short, rates)])
    return header, rows


def language_table(numbers: TokenizerNumbers) -> Table:
    """Errors and codes of every language."""
    header = ["language", "minutes", "WER unquantised", "WER through", "CER unquantised", "CER through"]
    rows = []
    for code, scores in numbers.languages.items():
        name = code if code in numbers.trained_languages else f"{code} (not trained on)"
        rates = [_short(rate) for errors in (scores.wer, scores.cer) for rate in (errors.unquantised, errors.through)]
        rows.append([name, f"{scores.seconds / 60:.1f}", *rates, *_use(scores.codebook)])
    return [*header, "codes in use", "perplexity", "bits/s", "repeats"], rows


def advice_table(numbers: TokenizerNumbers) -> Table:
    """What to do for every language."""
    return ["language", "advice", "because"], [[code, a.verdict, a.reason] for code, a in numbers.advice.items()]


def robustness_table(numbers: TokenizerNumbers) -> Table:
    """What becomes of tokens and transcripts when the sound is disturbed."""
    header = ["what is done", "tokens edited", "error rate", "change, points"]
    return header, [_robustness_row(name, row) for name, row in numbers.robustness.items()]


def speaker_table(numbers: TokenizerNumbers) -> Table:
    """How well a probe tells speakers apart; no row where there were too few."""
    header = ["speakers", "recordings", "chance", "from tokens", "from the log-mel", "leaked"]
    found = numbers.speaker_leakage
    if found is None:
        return header, []
    tokens = f"{found.from_tokens:.0%} [{found.low:.0%}, {found.high:.0%}]"
    leaked = ABSENT if found.leakage is None else f"{found.leakage:.0%}"
    counts = [str(found.speakers), str(found.recordings), f"{found.chance:.1%}"]
    return header, [[*counts, tokens, f"{found.from_log_mel:.0%}", leaked]]


def _pair(errors: Errors) -> list[str]:
    by_character = " (characters)" if errors.through.metric == "cer" else ""
    return [ABSENT if rate is None else f"{rate}{by_character}" for rate in (errors.unquantised, errors.through)]


def _short(rate: ErrorRate | None) -> str:
    return ABSENT if rate is None else f"{100 * rate.rate:.1f} %"


def _use(book: CodebookStats) -> list[str]:
    return [f"{book.usage:.0%}", f"{book.perplexity:.0f}", f"{book.entropy_bits_per_sec:.0f}", f"{book.repeats:.0%}"]


def _robustness_row(name: str, row: Robustness) -> list[str]:
    change = 100 * (row.wer.rate - row.wer_clean.rate)
    return [name, f"{row.token_edit_rate:.0%}", str(row.wer), f"{change:+.1f}"]
