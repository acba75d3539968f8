"""Character error rate of any language: what a word error rate hides where words are long, or blanks are set differently."""

from speechlm.evals.wer import ErrorRate, word_error_rate

BY_CHARACTER = "zh"  # compared by letters, digits and marks alone, whatever the script


def character_error_rate(references: list[str], hypotheses: list[str], clip: bool = False) -> ErrorRate:
    """Errors per letter, digit or mark; case, punctuation and blanks do not count. Raises what `word_error_rate` raises."""
    return word_error_rate(references, hypotheses, BY_CHARACTER, clip)
