"""Recordings of any length for a network that sees a window: cut into pieces, and the pieces' tokens joined again."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def split(audio: Tensor, audio_lens: Tensor, max_samples: int) -> tuple[Tensor, Tensor, list[int]]:
    """(B, N) waveforms, (B,) samples -> (P, N') pieces, (P,) samples, and which recording each piece came from, in order.

    A recording of no samples is one piece of none.
    """
    spans = [
        (b, start, min(max_samples, length - start))
        for b, length in enumerate(audio_lens.tolist())
        for start in range(0, max(1, length), max_samples)
    ]
    pieces = pad_sequence([audio[b, start : start + n] for b, start, n in spans], batch_first=True)
    return pieces, audio_lens.new_tensor([n for _, _, n in spans]), [b for b, _, _ in spans]


def join(tokens: Tensor, token_lens: Tensor, owner: list[int]) -> tuple[Tensor, Tensor]:
    """(P, T') tokens of pieces, (P,) their numbers -> (B, T) tokens of recordings, -1 behind the end, and (B,) numbers."""
    parts: list[list[Tensor]] = [[] for _ in range(owner[-1] + 1)]
    for row, length, b in zip(tokens, token_lens.tolist(), owner, strict=True):
        parts[b].append(row[:length])
    rows = [torch.cat(part) for part in parts]
    return pad_sequence(rows, batch_first=True, padding_value=-1), token_lens.new_tensor([len(row) for row in rows])
