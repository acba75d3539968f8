"""The tokenizer report as a page: verdicts and tables first, then sounds and pictures."""

import numpy as np
import torch

from speechlm.evals import pictures
from speechlm.evals import tokenizer_tables as tables
from speechlm.evals.advice import AdviceRule
from speechlm.evals.codebook import code_counts
from speechlm.evals.listening import Heard, Listening, snippets_of_code
from speechlm.evals.report_page import Page, card, facts, marked, picture, plain, player, words
from speechlm.evals.tokenizer_numbers import TokenizerNumbers
from speechlm.evals.wer import marked_words
from speechlm.stages.speech_tokenizer import SpeechTokenizer

SHOWN_RECORDINGS, SHOWN_CODES = 8, 12
History = dict[str, dict[int, float]]  # metric -> step -> value


def page(stage: SpeechTokenizer, sets: dict[str, Listening], numbers: TokenizerNumbers, history: History) -> Page:
    """The whole report."""
    heard = [item for listening in sets.values() for item in listening.heard]
    made = Page(f"Speech tokenizer: {numbers.run}", _lead(numbers))
    _understood(made, numbers)
    _disturbed(made, numbers)
    curves = _curves(history)
    if curves:
        made.heading("Learning")
        made.cards([card(picture(png, name), words(name)) for name, png in curves])
    made.heading(
        "Recordings",
        "The strip under each picture is the token sequence, one colour a code. Wrong words are underlined; ∅ is a lost word.",
    )
    made.cards([_recording(stage, item) for item in _some(heard)], grid=False)
    _codes(made, stage, heard, numbers)
    return made


def _lead(numbers: TokenizerNumbers) -> str:
    book = numbers.codebook
    trained = f"trained on {numbers.hours_trained:.2f} h of speech, " if numbers.hours_trained else ""
    return (
        f"{numbers.token_rate_hz:g} tokens a second from {book.num_codes} codes, {book.bits_per_sec:.0f} bits per second; "
        f"{trained}from {numbers.whisper}."
    )


def _understood(made: Page, numbers: TokenizerNumbers) -> None:
    made.heading(
        "Can it still be understood?",
        "Word and character error rates with 95 % intervals over held-out recordings. The unquantised model is the one training "
        "started from; × real time is the speed of tokenizing on this machine.",
    )
    made.table(*tables.set_table(numbers))
    made.heading(
        "Languages",
        "Codes in use and perplexity grow with the minutes they are counted over. Bits per second are those of codes as used.",
    )
    made.table(*tables.language_table(numbers))
    made.heading("Keep, fine-tune or retrain?", f"The rule: {AdviceRule()}.")
    made.table(*tables.advice_table(numbers))


def _disturbed(made: Page, numbers: TokenizerNumbers) -> None:
    header, rows = tables.robustness_table(numbers)
    if rows:
        made.heading(
            "What disturbs it?",
            "The same recordings, disturbed. Edits per token from the clean tokens; another speed changes a tenth of them by the "
            "number of tokens alone. Errors per recording count up to its words.",
        )
        made.table(header, rows)
    header, rows = tables.speaker_table(numbers)
    note = (
        "A linear probe names the speaker of recordings it has not seen, each speaker counting the same. Leaked is where it is "
        "with tokens and pairs of tokens alone, between chance and what it gets from the log-mel."
        if rows
        else "Not measured: it takes two speakers with two recordings each, named in the cuts' supervisions."
    )
    made.heading("Does it tell who speaks?", note)
    if rows:
        made.table(header, rows)


def _codes(made: Page, stage: SpeechTokenizer, heard: list[Heard], numbers: TokenizerNumbers) -> None:
    counts = code_counts([item.codes for item in heard], stage.num_codes)
    book = numbers.codebook
    made.heading(
        "Codebook",
        f"{book.usage:.0%} of the codes occur in {book.num_tokens} tokens; perplexity {book.perplexity:.0f}; "
        f"{book.entropy_bits_per_sec:.0f} bits per second as used.",
    )
    made.cards([card(picture(png, name), words(name)) for name, png in _codebook(stage, counts)])
    made.heading(
        "What a code sounds like", "Each player joins moments from different recordings that got the same code."
    )
    frequent = np.argsort(counts)[::-1][:SHOWN_CODES]
    made.cards([_code(stage, heard, int(code), int(counts[code])) for code in frequent if counts[code]])


def _recording(stage: SpeechTokenizer, item: Heard) -> str:
    mel, _ = stage.model.log_mel(torch.from_numpy(item.audio)[None], torch.tensor([len(item.audio)]))
    drawn = pictures.mel_with_codes(mel[0].numpy(), item.codes, 1 / stage.clock.token_rate_hz)
    language = item.language or "en"
    texts = [("said", plain(item.reference))]
    if item.unquantised is not None:
        texts.append(("unquantised", marked(marked_words(item.reference, item.unquantised, language))))
    texts.append(("through tokens", marked(marked_words(item.reference, item.through, language))))
    texts.append(("tokens", f"<code>{plain(' '.join(map(str, item.codes.tolist())))}</code>"))
    return card(
        player(item.audio, stage.clock.sample_rate_hz),
        picture(drawn, f"log-mel and tokens of {item.name}"),
        facts(texts),
    )


def _code(stage: SpeechTokenizer, heard: list[Heard], code: int, count: int) -> str:
    sound = snippets_of_code(heard, code, stage.clock)
    return card(words(f"code {code}, {count} times"), player(sound, stage.clock.sample_rate_hz))


def _codebook(stage: SpeechTokenizer, counts: np.ndarray) -> list[tuple[str, bytes]]:
    shown = [("occurrences by rank", pictures.rank_frequency(counts))]
    assert stage.model.encoder.quantizer is not None
    vectors = stage.model.encoder.quantizer.decode(torch.arange(stage.num_codes)).detach().float().numpy()
    return [*shown, ("codes on their two main axes", pictures.codebook_map(vectors, counts))]


def _curves(history: History) -> list[tuple[str, bytes]]:
    groups = {
        "loss": ["train/loss_asr", "train/loss_vq", "train/loss_distill_states"],
        "held-out word error rate": [name for name in history if name.startswith("val/") and name.endswith("/wer")],
        "codebook usage": ["codebook/usage"],
        "speed, × real time": ["perf/hours_per_hour"],
    }
    made = []
    for title, names in groups.items():
        series = {n: (list(map(float, history[n])), list(history[n].values())) for n in names if history.get(n)}
        if series:
            made.append((title, pictures.curves(series, "optimizer step", title)))
    return made


def _some(heard: list[Heard]) -> list[Heard]:
    """Recordings of a speakable length, spread over all of them."""
    fitting = [item for item in heard if 1.0 <= len(item.audio) / 16_000 <= 8.0] or heard
    return fitting[:: max(1, len(fitting) // SHOWN_RECORDINGS)][:SHOWN_RECORDINGS]
