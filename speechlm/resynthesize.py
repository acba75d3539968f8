"""Recording to tokens to recording, one file or a folder of them with a listening page:

    python -m speechlm.resynthesize in.wav out.wav --tokenizer runs/<name> --decoder runs/<name> [--vocoder runs/<name>]
    python -m speechlm.resynthesize recordings/ resynthesised/ --tokenizer … --decoder …

Of a folder, every sound file in it; what is written is FLAC under the same names, and `index.html`. Run folders may be folders of
the released weights: of the tokenizer, and of the decoder with `flow.pt` and `hift.pt`. Exit code 1 where nothing could be made.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from speechlm.conservation import Account
from speechlm.evals.resynthesis_page import Pair, listening_page
from speechlm.files import write_bytes_atomic, write_text_atomic
from speechlm.hidden_secrets import hide_secrets
from speechlm.resynthesis import Resynthesizer, open_resynthesizer, read_audio
from speechlm.sound import encoded

ENDINGS = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"}
FORMATS = {".wav": "WAV", ".flac": "FLAC"}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m speechlm.resynthesize", description="Recording to speech tokens to recording."
    )
    parser.add_argument("source", type=Path, help="sound file, or folder of them")
    parser.add_argument("out", type=Path, help=".wav or .flac to write, or a folder where the source is one")
    parser.add_argument("--tokenizer", required=True, help="run folder, or folder of the released tokenizer")
    parser.add_argument("--decoder", required=True, help="run folder, or folder with the released flow.pt and hift.pt")
    parser.add_argument("--vocoder", help="run folder or hift.pt, instead of the one in the decoder's config")
    parser.add_argument("--seed", type=int, default=0, help="of the decoder's noise")
    parser.add_argument("--stream", action="store_true", help="decode block by block, as tokens would come")
    parser.add_argument("--limit", type=int, help="at most so many files of a folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def resynthesize_file(speak: Resynthesizer, source: Path, out: Path, settings: argparse.Namespace) -> Pair:
    """One file.

    Raises:
        ValueError: it can not be used, or `out` is of another format.
    """
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"{out} must end in {' or '.join(FORMATS)}")
    original, tokens, made = speak(*read_audio(source), seed=settings.seed, stream=settings.stream)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(out, encoded(made, speak.sample_rate_hz, FORMATS[out.suffix.lower()]))
    return Pair(source.name, original, made, len(tokens))


def resynthesize_folder(speak: Resynthesizer, source: Path, out: Path, settings: argparse.Namespace) -> list[Pair]:
    """Every sound file of a folder, and the page; what can not be used is named and left out.

    Raises:
        ValueError: there is no sound file in it.
    """
    inside = sorted(source.iterdir())
    sounds = [path for path in inside if path.suffix.lower() in ENDINGS]
    files = sounds[: settings.limit]
    if not files:
        raise ValueError(f"{source} holds no sound file ({' '.join(sorted(ENDINGS))})")
    reasons = Counter({"no sound files": len(inside) - len(sounds), "beyond --limit": len(sounds) - len(files)})
    pairs: list[Pair] = []
    skipped: list[tuple[str, str]] = []
    for path in files:
        try:
            pairs.append(resynthesize_file(speak, path, out / f"{path.name}.flac", settings))
        except ValueError as error:
            skipped.append((path.name, str(error)))
            reasons["not usable"] += 1
            print(f"left out {path.name}: {error}", file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    title = f"{source.name} through speech tokens"
    write_text_atomic(out / "index.html", listening_page(pairs, speak.sample_rate_hz, title, skipped))
    account = Account("files", len(inside), len(pairs), reasons, ("in the folder", "resynthesised", "left out"))
    print(f"{account.require(str(out))}; {out / 'index.html'}")
    return pairs


def run(settings: argparse.Namespace) -> list[Pair]:
    """What a command line asks for.

    Raises:
        ValueError: something of it is wrong.
    """
    if not settings.source.exists():
        raise ValueError(f"{settings.source} does not exist")
    speak = open_resynthesizer(settings.tokenizer, settings.decoder, settings.vocoder, settings.device)
    if settings.source.is_dir():
        return resynthesize_folder(speak, settings.source, settings.out, settings)
    pair = resynthesize_file(speak, settings.source, settings.out, settings)
    print(f"{settings.out}: {len(pair.made) / speak.sample_rate_hz:.2f} s of {pair.num_tokens} tokens")
    return [pair]


def main(args: Sequence[str] | None = None) -> None:
    """Parse, build, speak."""
    hide_secrets()
    settings = build_parser().parse_args(args)
    try:
        pairs = run(settings)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    if not pairs:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
