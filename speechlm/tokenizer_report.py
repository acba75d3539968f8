"""What a speech tokenizer can do, as tables, a JSON file with its schema, and one page to open in a browser.

    python -m speechlm.tokenizer_report --run runs/<name> [--cuts MANIFEST …] [--limit 100] [--out FOLDER]

`--run` is a run folder, or a folder in the form of the released GLM-4-Voice tokenizer. Held-out recordings are the run's own
validation sets, or `--cuts`. Writes `report.html` (sounds, pictures, tables; needs nothing else), `report.json` (every number)
and `report.schema.json` (what they mean) into the run folder, or `--out`.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table

from callbacks.jsonl import METRICS, read_metrics
from datamodules.audio import AudioDataModule
from datamodules.cuts import CutSource, read_cuts
from speechlm import runs
from speechlm.conservation import Account
from speechlm.evals import perturbations
from speechlm.evals import tokenizer_tables as tables
from speechlm.evals.codebook import codebook_stats
from speechlm.evals.json_schema import schema_of
from speechlm.evals.listening import Heard, Listening, listen
from speechlm.evals.robustness import robustness
from speechlm.evals.speaker_probe import SpeakerLeakage, speaker_leakage
from speechlm.evals.tokenizer_numbers import (
    SCHEMA,
    TokenizerNumbers,
    advice_by_language,
    by_language,
    scores,
    set_scores,
)
from speechlm.evals.tokenizer_page import page
from speechlm.files import write_text_atomic
from speechlm.hidden_secrets import hide_secrets
from speechlm.load import load_stage
from speechlm.nn.glm4voice import is_released
from speechlm.nn.log_mel import LogMel
from speechlm.nn.whisper_source import SourceForm
from speechlm.provenance import git_state, hardware
from speechlm.released import released_stage
from speechlm.stages.speech_tokenizer import SpeechTokenizer

DISTURBED = 40  # recordings that are disturbed in every way there is


def report(
    run: str | Path,
    cuts: Sequence[str] = (),
    limit: int | None = None,
    out: str | Path | None = None,
    language: str = "",
    trained: Sequence[str] | None = None,
    source: str | None = None,
    source_form: SourceForm = "published",
    disturbed: int = DISTURBED,
) -> TokenizerNumbers:
    """Listen, measure, write page, JSON and schema, and return the numbers.

    Args:
        run: run folder or released folder.
        cuts: manifests of held-out recordings, instead of the run's validation sets.
        limit: recordings of each set at most.
        out: folder to write to; the run folder where None.
        language: code for recordings of `cuts` that name none.
        trained: codes of languages the tokenizer was trained on; what the run's config says where None.
        source: the unquantised model to compare with, where it is not the one that the run names.
        source_form: of that, see `WhisperSource`.
        disturbed: recordings that are disturbed; 0 leaves that out.

    Raises:
        ValueError: `run` is no speech tokenizer with a codebook, or there is nothing to listen to.
    """
    run = Path(run)
    stage = _load(run)
    if source:
        stage.compare_with(source, source_form)
    sources = _held_out(run, cuts, language)
    if trained is None:
        trained = _trained_languages(run)
    sets = {name: _listen(stage, name, held, limit) for name, held in sources.items()}
    heard = [item for listening in sets.values() for item in listening.heard]
    history = _history(run)
    rate = stage.clock.token_rate_hz
    numbers = TokenizerNumbers(
        schema=SCHEMA,
        run=run.name,
        whisper=stage.whisper,
        trained_languages=list(trained),
        token_rate_hz=rate,
        codebook=codebook_stats([item.codes for item in heard], stage.num_codes, rate),
        sets=set_scores(sets, stage.num_codes, rate),
        languages={code: scores(items, stage.num_codes, rate) for code, items in by_language(heard).items()},
        advice=advice_by_language(heard, list(trained), stage.num_codes),
        speaker_leakage=_leakage(heard, stage.num_codes),
        robustness=robustness(stage, _spread(heard, disturbed), perturbations.ALL, languages=stage.languages),
        hours_trained=_last(history, "data/hours"),
        machine=hardware(),
        code=git_state(run.resolve()),
    )
    _write(Path(out) if out else run, numbers, page(stage, sets, numbers, history).render())
    return numbers


def _write(folder: Path, numbers: TokenizerNumbers, html: str) -> None:
    write_text_atomic(folder / "report.json", json.dumps(asdict(numbers), indent=1, default=str) + "\n")
    schema = schema_of(TokenizerNumbers, "speech tokenizer report")
    write_text_atomic(folder / "report.schema.json", json.dumps(schema, indent=1) + "\n")
    write_text_atomic(folder / "report.html", html)


def _load(run: Path) -> SpeechTokenizer:
    stage = released_stage(run) if is_released(run) else load_stage(run)
    if not isinstance(stage, SpeechTokenizer) or not stage.num_codes:
        raise ValueError(f"{run} did not train a speech tokenizer with a quantiser, there are no tokens to report on")
    return stage


def _listen(stage: SpeechTokenizer, name: str, held: CutSource, limit: int | None) -> Listening:
    data = AudioDataModule(stage.clock, [held], val={name: held}, batch_seconds=60, max_seconds=_longest(stage))
    cuts = list(read_cuts(held.path))
    speakers = {c.id: c.supervisions[0].speaker or "" for c in cuts if c.supervisions}
    compare, loader = stage.source_name is not None, data.val_dataloader()[0]
    listening = listen(stage, loader, limit, speakers, compare, stage.languages)
    heard = len({item.name for item in listening.heard})
    left_out = Counter(reason for cut in cuts if (reason := data.unfit(cut))) + loader.skips.reasons
    if limit is not None and heard >= limit:  # what comes behind was not looked at
        left_out = Counter({"beyond --limit": len(cuts) - heard})
    print(f"{name}: {Account('recordings', len(cuts), heard, left_out, ('in', 'heard', 'left out')).require(name)}")
    return listening


def _longest(stage: SpeechTokenizer) -> float:
    """Seconds that the model hears at once."""
    return stage.model.max_samples / stage.clock.sample_rate_hz


def _leakage(heard: list[Heard], num_codes: int) -> SpeakerLeakage | None:
    log_mel = LogMel(80)
    known = [item for item in heard if item.speaker]
    mels = [log_mel(torch.from_numpy(h.audio)[None], torch.tensor([len(h.audio)]))[0][0].numpy() for h in known]
    return speaker_leakage([item.codes for item in known], [item.speaker for item in known], mels, num_codes)


def _spread(heard: list[Heard], wanted: int) -> list[Heard]:
    """Up to `wanted` recordings from all of them, evenly."""
    return heard[:: -(-len(heard) // wanted)] if wanted else []


def _held_out(run: Path, cuts: Sequence[str], language: str) -> dict[str, CutSource]:
    """Sets of recordings by name."""
    if cuts:
        return dict(zip(_names(cuts), [CutSource(path, language=language) for path in cuts], strict=True))
    config = runs.read_config(run) or {}
    given = config.get("data", {}).get("init_args", {}).get("val") or {}
    if not given:
        raise ValueError(f"{run} has no validation set; name recordings with --cuts")
    return {name: CutSource(**value) if isinstance(value, dict) else CutSource(value) for name, value in given.items()}


def _names(cuts: Sequence[str]) -> list[str]:
    """A name for every manifest: its own, with its folder's where two are alike."""
    short = [Path(path).name.split(".")[0] for path in cuts]
    return [
        name if short.count(name) == 1 else f"{Path(path).resolve().parent.name}/{name}"
        for name, path in zip(short, cuts, strict=True)
    ]


def _trained_languages(run: Path) -> list[str]:
    """Codes that the run's config gives its training corpora."""
    data = (runs.read_config(run) or {}).get("data", {}).get("init_args", {})
    corpora = [source for source in data.get("train") or [] if source.get("weight", 1.0) > 0]
    return sorted({source["language"] for source in corpora if source.get("language")})


def _history(run: Path) -> dict[str, dict[int, float]]:
    return read_metrics(run) if (run / METRICS).exists() else {}


def _last(history: dict[str, dict[int, float]], name: str) -> float | None:
    return list(history[name].values())[-1] if history.get(name) else None


def show(numbers: TokenizerNumbers, console: Console | None = None) -> None:
    """The result as tables in the terminal."""
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    title = f"{numbers.run}: {numbers.token_rate_hz:g} tokens a second"
    shown = {
        title: tables.brief_table(numbers),
        "what disturbs it": tables.robustness_table(numbers),
        "does it tell who speaks": tables.speaker_table(numbers),
        "keep, fine-tune or retrain": tables.advice_table(numbers),
    }
    for name, (header, rows) in shown.items():
        if rows:
            table = Table(*header, title=name)
            for row in rows:
                table.add_row(*row)
            console.print(table)
    book = numbers.codebook
    console.print(
        f"codebook: {book.usage:.0%} of {book.num_codes} codes in use, perplexity {book.perplexity:.0f}, "
        f"{book.bits_per_sec:.0f} bits per second at most, {book.entropy_bits_per_sec:.0f} as used"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, help="run folder, or a folder in the released form")
    parser.add_argument("--cuts", nargs="+", default=[], help="held-out cut manifests instead of the run's own sets")
    parser.add_argument("--language", default="", help="code for recordings of --cuts that name none")
    parser.add_argument("--trained", nargs="*", help="languages it was trained on, where the run's config does not say")
    parser.add_argument("--source", help="the unquantised Whisper to compare with, where the run does not name it")
    parser.add_argument(
        "--source_form", choices=get_args(SourceForm), default="published", help="how --source was trained"
    )
    parser.add_argument("--limit", type=int, help="recordings of each set at most")
    parser.add_argument("--disturbed", type=int, default=DISTURBED, help="recordings that are disturbed; 0 for none")
    parser.add_argument("--out", help="folder to write to instead of the run's")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Parse, report, show."""
    hide_secrets()
    parser = _parser()
    given: dict[str, Any] = vars(parser.parse_args(args))
    try:
        show(report(**given))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print(f"open {Path(given['out'] or given['run']) / 'report.html'}")


if __name__ == "__main__":
    main()
