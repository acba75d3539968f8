"""What somebody says, as speech tokens: block by block while they speak where the tokenizer can, else at once at the end."""

from typing import Any, Protocol

import numpy as np
import torch

from speechlm.nn.streaming_whisper import TokenStream
from speechlm.tokens.clock import Clock


class Hearing(Protocol):
    """Makes tokens of waveforms: a `SpeechTokenizer`, or any tokenizer with a `stream`."""

    clock: Clock

    def tokenize(self, audio: torch.Tensor, audio_lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N) waveform, (B,) samples -> (B, T) tokens and (B,) tokens."""
        ...

    def stream(self, approximate_floor: bool = False) -> TokenStream:
        """Tokens of a recording that is still arriving."""
        ...


class Ear:
    """One utterance.

    Args:
        tokenizer: see `Hearing`.
        device: of the tokenizer.
    """

    def __init__(self, tokenizer: Hearing, device: torch.device) -> None:
        self.tokenizer, self.device = tokenizer, device
        self.num_samples = 0
        self._codes: list[np.ndarray] = []
        self._audio: list[np.ndarray] = []
        try:
            self._stream: Any = tokenizer.stream(approximate_floor=True)
        except ValueError:  # convolutions that see the future
            self._stream = None

    def push(self, audio: np.ndarray) -> None:
        """(N,) further samples in [-1, 1] at the tokenizer's rate."""
        self.num_samples += len(audio)
        if self._stream is None:
            self._audio.append(audio)
        else:
            self._codes.append(self._stream.push(torch.from_numpy(audio).to(self.device)).cpu().numpy())

    @torch.no_grad()
    def finish(self) -> np.ndarray:
        """(T,) codes of all of it."""
        if self._stream is not None:
            return np.concatenate([*self._codes, self._stream.flush().cpu().numpy()])
        if not self.num_samples:
            return np.zeros(0, np.int64)
        audio = torch.from_numpy(np.concatenate(self._audio)).to(self.device)[None]
        codes, lens = self.tokenizer.tokenize(audio, torch.tensor([audio.shape[1]], device=self.device))
        return codes[0, : int(lens[0])].cpu().numpy()
