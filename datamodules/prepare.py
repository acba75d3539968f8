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
import json
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
    """Say beside the manifests what they are of; the licence is the publishers', or what was said."""
    settings = dict(itertools.pairwise(word for words_ in words for word in words_.split("=", 1)))
    name, out = words[0], Path(settings["--out"])
    corpus = settings.get("--corpus") or settings.get("--table") or ""
    counts: dict[str, float] = {}
    languages: set[str] = set()
    for path in sorted(out.rglob("*.jsonl.gz")):
        part = path.relative_to(out).as_posix().removesuffix(".jsonl.gz")
        recordings, seconds, spoken = contents(path)
        counts |= {f"recordings in {part}": recordings, f"hours in {part}": seconds / 3600}
        languages |= spoken
    DataCard(
        f"Manifests of {name}",
        f"python -m datamodules.prepare {name}",
        (corpus,),
        settings.get("--licence") or LICENCES.get(name, ""),
        tuple(sorted(languages)),
        counts,
    ).write(out)


def contents(path: Path) -> tuple[int, float, set[str]]:
    """Cuts, seconds and languages of a compressed manifest, read once from front to back."""
    count, seconds, languages = 0, 0.0, set[str]()
    with gzip.open(path, "rb") as file:
        for count, line in enumerate(file, 1):  # noqa: B007 - the last count is the number of cuts
            cut = json.loads(line)
            seconds += cut["duration"]
            languages |= {said["language"] for said in cut.get("supervisions", ()) if said.get("language")}
    return count, seconds, languages


if __name__ == "__main__":
    main()
