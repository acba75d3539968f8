"""Cuts with their speech tokens, read from what `speechlm.tokenize` wrote, and refused where it is not what it says."""

import math
from pathlib import Path

import numpy as np
from lhotse import CutSet
from lhotse.array import TemporalArray
from lhotse.cut import Cut, MonoCut, MultiCut

from datamodules.cuts import read_cuts
from datamodules.token_folder import FIELD, TokenFolder
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import Vocab

_TOLERANCE = 1e-3  # of a token: times in manifests are rounded


def read_token_cuts(
    path: str | Path,
    vocab: Vocab | None = None,
    tokenizer_hash: str | None = None,
    clock: Clock | None = None,
    language: str = "",
    shuffle_seed: str | None = None,
) -> CutSet:
    """A lazy CutSet whose cuts carry `speech_tokens`; each shard is compared with its checksums before it is read.

    Args:
        path: folder of tokens.
        vocab: whose speech codes these must be.
        tokenizer_hash: of the tokenizer that must have made them.
        clock: whose token rate they must have.
        language: for supervisions that name none.
        shuffle_seed: the order of the shards; None is by number.

    Raises:
        ValueError: at once, the path is no folder of tokens, or of others than wanted (both sides are named), or shards are
            missing or the folder's own files damaged; while reading, a shard is not, to the byte, what was written.
    """
    folder = TokenFolder.find(path)
    if folder is None:
        raise ValueError(
            f"{path} is no folder of tokens: it has no tokenize.json; `python -m speechlm.tokenize` makes one"
        )
    folder.require(vocab, tokenizer_hash, clock)
    folder.check_summary()
    return read_cuts(folder.path, language, shuffle_seed)


def tokens_of(cut: Cut) -> np.ndarray:
    """(T,) int64: every token of the recording that a cut, whole or truncated, has a sample of; the outer two maybe in part.

    Lhotse's own `cut.load_speech_tokens()` rounds a cut's ends to the nearest token, and so may leave out the last, partly filled
    one.

    Raises:
        ValueError: the cut carries no tokens, or begins before them.
    """
    field = cut.custom.get(FIELD) if isinstance(cut, MonoCut | MultiCut) and cut.custom else None
    if not isinstance(field, TemporalArray):
        raise ValueError(f"cut {cut.id} carries no {FIELD}")
    begin = (cut.start - field.start) / field.frame_shift
    if begin < -_TOLERANCE:
        raise ValueError(f"cut {cut.id} begins {-begin:.2f} tokens before its tokens do")
    first = math.floor(begin + _TOLERANCE)
    end = math.ceil(begin + cut.duration / field.frame_shift - _TOLERANCE)
    return np.asarray(field.load())[first:end].astype(np.int64)
