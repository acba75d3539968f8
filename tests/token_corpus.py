"""A small corpus, and tokens of it by the tiny released tokenizer, for the tests of bulk tokenization."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from speechlm import tokenize
from speechlm.tokenizers import Glm4VoiceTokens
from tests.audio_corpus import make_corpus

GOLDEN = Path(__file__).parent / "golden" / "glm4voice_tokenizer"  # 64 codes, 12.5 Hz, sees 1.2 s at a time
NUM_CUTS, SHARD_SIZE = 23, 5
NUM_SHARDS = 5


def write_config(folder: Path, manifest: Path, **changes: Any) -> Path:
    """A config that tokenizes `manifest` into `folder`/out, with top-level entries replaced."""
    config = {
        "cuts": [str(manifest)],
        "out": str(folder / "out"),
        "tokenizer": {"class_path": "speechlm.tokenizers.Glm4VoiceTokens", "init_args": {"folder": str(GOLDEN)}},
        "making": {"shard_size": SHARD_SIZE, "batch_seconds": 2.0, "decode_threads": 2},
        "device": "cpu",
    }
    path = folder / "tokenize.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**config, **changes}), encoding="utf-8")
    return path


def tokenized(folder: Path, manifest: Path, *arguments: str, **changes: Any) -> Path:
    """The folder of tokens that the command line makes."""
    tokenize.main(["--config", str(write_config(folder, manifest, **changes)), *arguments])
    return folder / "out"


def corpus(folder: Path) -> Path:
    """Recordings of 0.2 to 2.6 s, some longer than the tokenizer sees at a time."""
    return make_corpus(folder, NUM_CUTS, seconds=(0.2, 2.6))


def content(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, to the byte."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def expected_tokens(audio: np.ndarray) -> np.ndarray:
    """Tokens of one recording alone."""
    tokens, _ = Glm4VoiceTokens(str(GOLDEN)).tokenize(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
    return tokens[0].numpy()
