"""Corpora as they are published -> cut manifests that the configs name.

python -m datamodules.prepare librispeech --corpus data/LibriSpeech --out data/librispeech
python -m datamodules.prepare libritts --corpus data/LibriTTS_R --out data/libritts
python -m datamodules.prepare vctk --corpus data/VCTK-Corpus-0.92 --out data/vctk
python -m datamodules.prepare aishell --corpus data/aishell --out data/aishell
python -m datamodules.prepare gigaspeech --corpus data/GigaSpeech --out data/gigaspeech --subset XL
python -m datamodules.prepare wenetspeech --corpus data/WenetSpeech --out data/wenetspeech --subset L
python -m datamodules.prepare mls --corpus data/MLS --out data/mls --languages '[en, de]' --jobs 16
python -m datamodules.prepare commonvoice --corpus data/cv-corpus-17.0-2024-03-15 --out data/commonvoice --languages '[en, zh-CN]'
python -m datamodules.prepare emilia --corpus data/Emilia-Dataset --out data/emilia --languages '[en, zh]' --jobs 16
python -m datamodules.prepare table --table data/es/table.tsv --out data/es --language es
"""

import gzip
import itertools
import sys
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from datamodules.data_card import LICENCES, DataCard
from datamodules.recipes import (
    aishell,
    commonvoice,
    emilia,
    gigaspeech,
    librispeech,
    libritts,
    mls,
    table,
    vctk,
    wenetspeech,
)
from speechlm.hidden_secrets import hide_secrets

RECIPES: dict[str, Any] = {
    "librispeech": librispeech.prepare,
    "libritts": libritts.prepare,
    "vctk": vctk.prepare,
    "aishell": aishell.prepare,
    "gigaspeech": gigaspeech.prepare,
    "wenetspeech": wenetspeech.prepare,
    "mls": mls.prepare,
    "commonvoice": commonvoice.prepare,
    "emilia": emilia.prepare,
    "table": table.prepare,
}


def main(args: list[str] | None = None) -> None:
    """The command line; exits with 2 for an argument that is wrong, with 1 for a corpus that is."""
    hide_secrets()
    try:
        auto_cli(RECIPES, args=args, as_positional=False, prog="python -m datamodules.prepare")
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    write_card(list(sys.argv[1:] if args is None else args))


def write_card(words: list[str]) -> None:
    """Say beside the manifests what they are of; the licence is the publishers'."""
    settings = dict(itertools.pairwise(word for words_ in words for word in words_.split("=", 1)))
    name, out = words[0], Path(settings["--out"])
    corpus = settings.get("--corpus") or settings.get("--table") or ""
    parts = {path.name.removesuffix(".jsonl.gz"): count_lines(path) for path in sorted(out.glob("*.jsonl.gz"))}
    counts = {f"recordings in {part}": count for part, count in parts.items()}
    DataCard(
        f"Manifests of {name}",
        f"python -m datamodules.prepare {name}",
        (corpus,),
        LICENCES.get(name, ""),
        counts=counts,
    ).write(out)


def count_lines(path: Path) -> int:
    """Lines of a compressed manifest, read once from front to back."""
    with gzip.open(path, "rb") as file:
        return sum(1 for _ in file)


if __name__ == "__main__":
    main()
