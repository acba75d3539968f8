"""What becomes of tokens and transcripts when the sound is disturbed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from speechlm.evals.listening import Heard, Tokenizer
from speechlm.evals.perturbations import SAMPLE_RATE_HZ, Perturbation
from speechlm.evals.token_agreement import edit_rate
from speechlm.evals.wer import ErrorRate, word_error_rate

MAX_SEC = 25.0  # slower speech must still fit into the 30 s that Whisper hears


@dataclass(frozen=True)
class Robustness:
    """One way of disturbing recordings.

    Attributes:
        recordings: disturbed.
        token_edit_rate: edits per token that lead from the clean recording's tokens to the disturbed one's. Another speed changes
            the number of tokens, and by that alone a tenth of them.
        wer: error rate through the bottleneck after it.
        wer_clean: of the same recordings undisturbed.
    """

    recordings: int
    token_edit_rate: float
    wer: ErrorRate
    wer_clean: ErrorRate


@torch.inference_mode()
def robustness(
    tokenizer: Tokenizer,
    heard: list[Heard],
    perturbations: Mapping[str, Perturbation],
    batch_seconds: float = 60.0,
    languages: set[str] | None = None,
    seed: int = 0,
) -> dict[str, Robustness]:
    """Disturb, tokenize and transcribe recordings of up to `MAX_SEC`; empty where there is none.

    Only recordings of the language that most of them are in are taken; see `word_error_rate`. Each counts up to as many errors as
    it has words, so that one looping transcript does not decide.

    Args:
        tokenizer: what is tried.
        heard: recordings with their tokens and transcripts, undisturbed.
        perturbations: by name.
        batch_seconds: of audio at once, padding counted.
        languages: see `listen`.
        seed: of noise.
    """
    items = sorted((h for h in heard if len(h.audio) <= MAX_SEC * SAMPLE_RATE_HZ), key=lambda h: len(h.audio))
    if not items:
        return {}
    spoken = [item.language or "en" for item in items]
    language = max(sorted(set(spoken)), key=spoken.count)
    items = [item for item in items if (item.language or "en") == language]
    references = [item.reference for item in items]
    clean = word_error_rate(references, [item.through for item in items], language, clip=True)
    made = {}
    for name, perturb in perturbations.items():
        audio = [perturb(item.audio, np.random.default_rng([seed, i])) for i, item in enumerate(items)]
        asked = language if languages is None or language in languages else ""
        codes, texts = _listen(tokenizer, audio, asked, batch_seconds)
        rate = word_error_rate(references, texts, language, clip=True)
        made[name] = Robustness(len(items), edit_rate([item.codes for item in items], codes), rate, clean)
    return made


def _listen(
    tokenizer: Tokenizer, audio: list[np.ndarray], language: str, batch_seconds: float
) -> tuple[list[np.ndarray], list[str]]:
    """Codes and transcripts of waveforms sorted by length."""
    codes: list[np.ndarray] = []
    texts: list[str] = []
    while len(codes) < len(audio):
        rest = audio[len(codes) :]
        fitting = [n for n in range(1, len(rest) + 1) if n * len(rest[n - 1]) <= batch_seconds * SAMPLE_RATE_HZ]
        chosen = [torch.from_numpy(row) for row in rest[: max(fitting, default=1)]]
        lens = torch.tensor([len(row) for row in chosen])
        batch = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        found, found_lens = tokenizer.tokenize(batch, lens)
        codes += [row[:n].numpy() for row, n in zip(found, found_lens, strict=True)]
        texts += tokenizer.transcribe(batch, lens, [language] * len(chosen))
    return codes, texts
