"""What a trained speech tokenizer has learnt, as a table, a JSON file and one page to open in a browser.

    python -m speechlm.tokenizer_report --run runs/<name> [--cuts MANIFEST] [--limit 100] [--out FOLDER]

Held-out recordings are the run's own validation sets, or `--cuts`. Writes `report.html` (sounds, pictures, tables; needs nothing
else) and `report.json` (every number) into the run folder.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from callbacks.jsonl import read_metrics
from datamodules.audio import AudioDataModule
from datamodules.cuts import CutSource
from speechlm import runs
from speechlm.evals import pictures
from speechlm.evals.codebook import code_counts, codebook_stats
from speechlm.evals.listening import Heard, Listening, listen, snippets_of_code
from speechlm.evals.report_page import Page, card, facts, marked, picture, plain, player, words
from speechlm.evals.wer import marked_words, word_error_rate
from speechlm.files import write_text_atomic
from speechlm.load import load_stage
from speechlm.provenance import git_state, hardware
from speechlm.stages.speech_tokenizer import SpeechTokenizer

SCHEMA = 1
SHOWN_RECORDINGS, SHOWN_CODES = 8, 12


def report(
    run: str | Path, cuts: str | None = None, limit: int | None = None, out: str | Path | None = None
) -> dict[str, Any]:
    """Listen, write `report.json` and `report.html`, and return the numbers."""
    run = Path(run)
    folder = Path(out) if out else run
    stage = load_stage(run)
    if not isinstance(stage, SpeechTokenizer) or not stage.num_codes:
        raise ValueError(f"{run} did not train a speech tokenizer with a quantiser, there are no tokens to report on")
    sets = {name: listen(stage, batches, limit) for name, batches in _held_out(run, stage, cuts).items()}
    numbers = measure(stage, sets) | {
        "run": run.name,
        "whisper": stage.whisper,
        "machine": hardware(),
        "code": git_state(run.resolve()),
    }
    numbers["hours_trained"] = _last(_history(run), "data/hours")
    write_text_atomic(folder / "report.json", json.dumps(numbers, indent=1, default=str) + "\n")
    write_text_atomic(folder / "report.html", page(stage, sets, numbers, _history(run)).render())
    return numbers


def measure(stage: SpeechTokenizer, sets: dict[str, Listening]) -> dict[str, Any]:
    """Every number of the report."""
    codes = [item.codes for listening in sets.values() for item in listening.heard]
    stats = codebook_stats(codes, stage.num_codes, stage.clock.token_rate_hz)
    return {
        "schema": SCHEMA,
        "token_rate_hz": stage.clock.token_rate_hz,
        "codebook": asdict(stats),
        "sets": {name: _scores(listening) for name, listening in sets.items()},
    }


def _scores(listening: Listening) -> dict[str, Any]:
    references = [item.reference for item in listening.heard]
    rates = {side: [getattr(item, side) for item in listening.heard] for side in ("through", "unquantised")}
    scored = {side: asdict(word_error_rate(references, texts)) for side, texts in rates.items()}
    return {
        "recordings": len(references),
        "seconds": sum(len(item.audio) for item in listening.heard) / 16_000,
        "wer": scored,
        "tokenize_x_real_time": listening.times_real_time,
    }


def page(stage: SpeechTokenizer, sets: dict[str, Listening], numbers: dict[str, Any], history: dict) -> Page:
    """The whole report as a page."""
    clock, book = stage.clock, numbers["codebook"]
    hours = numbers.get("hours_trained")
    trained = f"trained on {hours:.2f} h of speech, " if hours else ""
    lead = (
        f"{clock.token_rate_hz:g} tokens a second from {book['num_codes']} codes, {book['bits_per_sec']:.0f} bits per second; "
        f"{trained}from {stage.whisper}."
    )
    made = Page(f"Speech tokenizer: {numbers.get('run', '')}", lead)
    made.heading(
        "Can it still be understood?",
        "Word error rates with 95 % intervals over held-out recordings. The unquantised model is the one training started from.",
    )
    made.table(*wer_table(numbers))
    made.heading("Learning")
    made.cards([card(picture(png, name), words(name)) for name, png in _curves(history)])
    made.heading(
        "Recordings",
        "The strip under each picture is the token sequence, one colour a code. Wrong words are underlined; ∅ is a lost word.",
    )
    made.cards([_recording(stage, item) for item in _some([i for s in sets.values() for i in s.heard])], grid=False)
    heard = [item for listening in sets.values() for item in listening.heard]
    counts = code_counts([item.codes for item in heard], stage.num_codes)
    made.heading(
        "Codebook",
        f"{book['usage']:.0%} of the codes occur in {book['num_tokens']} tokens; perplexity {book['perplexity']:.0f}.",
    )
    made.cards([card(picture(png, name), words(name)) for name, png in _codebook(stage, counts)])
    made.heading(
        "What a code sounds like", "Each player joins moments from different recordings that got the same code."
    )
    frequent = np.argsort(counts)[::-1][:SHOWN_CODES]
    made.cards([_code(stage, heard, int(code), int(counts[code])) for code in frequent if counts[code]])
    return made


def wer_table(numbers: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, for the page and the terminal alike."""
    header = ["held-out set", "recordings", "WER unquantised", "WER through the bottleneck", "tokenizing, × real time"]
    rows = []
    for name, scores in numbers["sets"].items():
        rates = [_rate(scores["wer"][side]) for side in ("unquantised", "through")]
        rows.append([name, str(scores["recordings"]), *rates, f"{scores['tokenize_x_real_time']:.0f}"])
    return header, rows


def _rate(wer: dict[str, Any]) -> str:
    return f"{100 * wer['rate']:.1f} % [{100 * wer['low']:.1f}, {100 * wer['high']:.1f}]"


def _recording(stage: SpeechTokenizer, item: Heard) -> str:
    mel, _ = stage.model.log_mel(torch.from_numpy(item.audio)[None], torch.tensor([len(item.audio)]))
    drawn = pictures.mel_with_codes(mel[0].numpy(), item.codes, 1 / stage.clock.token_rate_hz)
    texts = [
        ("said", plain(item.reference)),
        ("unquantised", marked(marked_words(item.reference, item.unquantised))),
        ("through tokens", marked(marked_words(item.reference, item.through))),
        ("tokens", f"<code>{plain(' '.join(map(str, item.codes.tolist())))}</code>"),
    ]
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


def _curves(history: dict[str, dict[int, float]]) -> list[tuple[str, bytes]]:
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


def _held_out(run: Path, stage: SpeechTokenizer, cuts: str | None) -> dict[str, Any]:
    config = runs.read_config(run) or {}
    given = config.get("data", {}).get("init_args", {}).get("val") or {}
    sources = {
        name: CutSource(**value) if isinstance(value, dict) else CutSource(value) for name, value in given.items()
    }
    if cuts:
        sources = {Path(cuts).stem: CutSource(cuts)}
    if not sources:
        raise ValueError(f"{run} has no validation set; name recordings with --cuts")
    data = AudioDataModule(stage.clock, [*sources.values()], val={**sources}, batch_seconds=60)
    return dict(zip(data.val_names, data.val_dataloader(), strict=True))


def _history(run: Path) -> dict[str, dict[int, float]]:
    return read_metrics(run) if (run / "metrics.jsonl").exists() else {}


def _last(history: dict[str, dict[int, float]], name: str) -> float | None:
    return list(history[name].values())[-1] if history.get(name) else None


def show(numbers: dict[str, Any], console: Console | None = None) -> None:
    """The result as a table in the terminal."""
    header, rows = wer_table(numbers)
    table = Table(*header, title=f"{numbers['run']}: {numbers['token_rate_hz']:g} tokens a second")
    for row in rows:
        table.add_row(*row)
    book = numbers["codebook"]
    console = console or Console()
    console.print(table)
    console.print(
        f"codebook: {book['usage']:.0%} of {book['num_codes']} codes in use, perplexity {book['perplexity']:.0f}, "
        f"{book['bits_per_sec']:.0f} bits per second at most, {book['entropy_bits_per_sec']:.0f} as used"
    )


def main() -> None:
    """Parse, report, show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--cuts", help="held-out cut manifest instead of the run's validation sets")
    parser.add_argument("--limit", type=int, help="recordings of each set at most")
    parser.add_argument("--out", help="folder for report.html and report.json instead of the run's")
    args = parser.parse_args()
    try:
        show(report(args.run, args.cuts, args.limit, args.out))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print(f"open {Path(args.out or args.run) / 'report.html'}")


if __name__ == "__main__":
    main()
