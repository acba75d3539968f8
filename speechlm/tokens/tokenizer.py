"""What a speech tokenizer promises to whoever uses it in bulk, whoever trained it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from speechlm.tokens.clock import Clock


class Tokenizer(Protocol):
    """Waveforms to speech tokens.

    The tokens of a recording depend on that recording alone, not on what else is in the batch nor on its padding. A recording
    longer than `window_samples` is seen in pieces of that length that know nothing of each other, so that cutting it there
    beforehand changes nothing.
    """

    clock: Clock  # rates of the audio it takes and the tokens it gives
    num_codes: int  # tokens lie in [0, num_codes)
    tokens_per_frame: int  # tokens come in whole frames of this many; 1 but for codecs with several codebooks
    window_samples: int  # a whole number of frames
    settings: dict[str, Any]  # plain values that say what it is, for people and for the hash
    hash: str  # `fingerprint` of settings and weights: equal hashes give equal tokens

    def tokenize(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) waveform in [-1, 1] and (B,) samples -> (B, T) tokens, -1 behind the end, and (B,) tokens."""
        ...

    def move_to(self, device: torch.device) -> None:
        """Compute there from now on."""
        ...


def fingerprint(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """16 hex digits over plain settings and named tensors, whatever the order they come in."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, ensure_ascii=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
