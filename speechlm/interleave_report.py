"""What interleaved documents are like, on one page to read and to hear:

    python -m speechlm.interleave_report --data data/interleaved [--decoder runs/<name> --vocoder runs/<name>]

`--data` is a folder that `python -m speechlm.synthesize` wrote, of one source or of several. Writes `report.html` (histograms,
what was refused and why, documents with their spans, sounds; needs nothing else), `report.json` (every number) and
`report.schema.json` (what they mean) into it, or into `--out`. Shards are read one by one.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from datamodules.interleaved_folder import JOB, InterleavedFolder
from speechlm.evals.interleave_numbers import SCHEMA, InterleaveNumbers, TextIds, survey
from speechlm.evals.interleave_page import Speak, overview, page, rejects
from speechlm.evals.json_schema import schema_of
from speechlm.files import write_text_atomic
from speechlm.hidden_secrets import hide_secrets
from speechlm.provenance import git_state
from speechlm.resynthesis import open_decoder
from speechlm.spoken_text import spoken
from speechlm.stages.flow_decoder import FlowDecoder
from speechlm.text_tokenizer import TextTokenizer


def report(
    data: str | Path,
    decoder: str | None = None,
    vocoder: str | None = None,
    model: str | None = None,
    samples: int = 6,
    sounds: int = 8,
    shards: int | None = None,
    out: str | Path | None = None,
    device: str = "cpu",
) -> InterleaveNumbers:
    """Read, count, speak, write page, JSON and schema, and return the numbers.

    Args:
        data: folder of a source's documents, or of several such folders.
        decoder: run folder of a flow decoder for the documents' speech tokens; None leaves spans to be read.
        vocoder: run folder, instead of the one in the decoder's config.
        model: folder of the text-to-token model, whose tokenizer counts the ids of each span.
        samples: documents of each source to show.
        sounds: spans of each source to hear.
        shards: read so many of each source at most.
        out: folder to write to; `data` where None.
        device: to decode on.

    Raises:
        ValueError: there are no interleaved documents, or the decoder speaks other tokens.
    """
    folders = sources_of(Path(data))
    if vocoder and not decoder:
        raise ValueError("--vocoder makes a decoder's mel heard; name the decoder too, with --decoder")
    stage = open_decoder(decoder, vocoder, device) if decoder else None
    numbers, shown = {}, {}
    for name, folder in folders.items():
        if stage is not None:
            require_fit(folder, stage)
        numbers[name], shown[name] = survey(folder, samples, shards, _text_ids(model, folder) if model else None)
    made = InterleaveNumbers(SCHEMA, numbers, git_state(Path(data).resolve()))
    rate_hz = stage.clock.sample_rate_hz if stage else 16_000
    html = page(made, shown, speaker(stage) if stage else None, rate_hz, sounds).render()
    _write(Path(out or data), made, html)
    return made


def sources_of(data: Path) -> dict[str, InterleavedFolder]:
    """Folders of documents by their name: the folder itself, or those in it.

    Raises:
        ValueError: there is none.
    """
    if (data / JOB).is_file():
        return {data.resolve().name: InterleavedFolder(data)}
    found = {path.parent.name: InterleavedFolder(path.parent) for path in sorted(data.glob(f"*/{JOB}"))}
    if not found:
        raise ValueError(f"{data} has no interleaved documents; name a folder that python -m speechlm.synthesize wrote")
    return found


def require_fit(folder: InterleavedFolder, stage: FlowDecoder) -> None:
    """Refuse a decoder of tokens at another rate.

    Raises:
        ValueError: it is one.
    """
    making = folder.making()
    if making is not None and making.token_rate_hz != float(stage.clock.token_rate_hz):
        raise ValueError(
            f"{folder.folder} has {making.token_rate_hz:g} speech tokens per second, the decoder speaks "
            f"{stage.clock.token_rate_hz:g}; name a decoder that was trained with the same tokenizer"
        )


def speaker(stage: FlowDecoder) -> Speak:
    """(T,) codes -> (N,) waveform, always with the same noise."""

    @torch.no_grad()
    def speak(codes: np.ndarray) -> np.ndarray:
        if codes.max(initial=0) >= stage.used.num_tokens:
            raise ValueError(
                f"a document has code {int(codes.max())}, the decoder speaks {stage.used.num_tokens}; name a decoder that was "
                f"trained with the same tokenizer"
            )
        tokens = torch.from_numpy(np.asarray(codes, np.int64))[None].to(stage.device)
        audio, _ = stage.speak(tokens, torch.tensor([len(codes)], device=stage.device), seed=0)
        return audio[0].float().cpu().numpy()

    return speak


def _text_ids(model: str, folder: InterleavedFolder) -> TextIds:
    """Counts ids as the job did when it asked for the spans."""
    tokenizer, language = TextTokenizer(model), folder.job["source"]["language"]
    if tokenizer.fingerprint != folder.job["text_tokenizer"]:
        raise ValueError(f"{model} has another text tokenizer than the one {folder.folder} was made with")
    return lambda spans: [len(ids) for ids in tokenizer.encode([spoken(span, language) for span in spans])]


def _write(folder: Path, numbers: InterleaveNumbers, html: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / "report.json", json.dumps(asdict(numbers), indent=1) + "\n")
    schema = schema_of(InterleaveNumbers, "interleave report")
    write_text_atomic(folder / "report.schema.json", json.dumps(schema, indent=1) + "\n")
    write_text_atomic(folder / "report.html", html)


def show(numbers: InterleaveNumbers, console: Console | None = None) -> None:
    """The result as tables in the terminal."""
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    named = {f"refused: {name}": rejects(source) for name, source in numbers.sources.items()}
    for title, (header, rows) in {"interleaved documents": overview(numbers), **named}.items():
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m speechlm.interleave_report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--data", required=True, help="folder that speechlm.synthesize wrote, of one source or of several"
    )
    parser.add_argument("--decoder", help="run folder of a flow decoder, or of the released one, to hear spans")
    parser.add_argument("--vocoder", help="run folder or hift.pt, instead of the one in the decoder's config")
    parser.add_argument("--model", help="folder of the text-to-token model: ids of text are counted by span, too")
    parser.add_argument("--samples", type=int, default=6, help="documents of each source to show")
    parser.add_argument("--sounds", type=int, default=8, help="spans of each source to hear")
    parser.add_argument("--shards", type=int, help="read so many of each source at most")
    parser.add_argument("--out", help="folder to write to instead of --data")
    parser.add_argument("--device", default="auto", help="to decode on: auto, cpu, cuda or cuda:N")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Parse, report, show."""
    hide_secrets()
    parser = _parser()
    given = vars(parser.parse_args(args))
    try:
        show(report(**given))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"open {Path(given['out'] or given['data']) / 'report.html'}")


if __name__ == "__main__":
    main()
