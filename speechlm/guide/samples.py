"""Interleaved documents for people: text as it is, speech as the numbers of its codes."""

from itertools import islice
from pathlib import Path

import numpy as np

from datamodules.interleaved import read_interleaved
from speechlm.text_tokenizer import TextTokenizer

SHOWN_CODES = 12


def interleaved_samples(folder: Path, tokenizer: str = "assets/whisper-nano-en", count: int = 3) -> list[str]:
    """The first documents of a folder of shards; none where there is none."""
    shards = sorted(folder.glob("*.safetensors"))
    backend = TextTokenizer(tokenizer).backend
    documents = (document for shard in shards for document in read_interleaved(shard))
    return [
        " ".join(_shown(kind, values, backend) for kind, values in document.parts)
        for document in islice(documents, count)
    ]


def _shown(kind: str, values: np.ndarray, backend: object) -> str:
    if kind == "text":
        return str(backend.decode(values.tolist()))  # type: ignore[attr-defined]
    codes = " ".join(map(str, values[:SHOWN_CODES].tolist()))
    return f"⟨{codes}{' …' if len(values) > SHOWN_CODES else ''}⟩"
