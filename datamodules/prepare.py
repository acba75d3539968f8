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

import sys
from typing import Any

from jsonargparse import auto_cli

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


if __name__ == "__main__":
    main()
