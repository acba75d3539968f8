"""Tokens in as they come, sound out: a stream of mel, and a stream of samples made of it."""

import torch
from torch import Tensor

from speechlm.nn.flow_stream import MelStream
from speechlm.nn.generator import Stream


class SpeechStream:
    """Recordings that are being spoken; the vocoder is its look-ahead behind the mel, until the last push.

    Args:
        mel: makes mel of tokens.
        voice: makes samples of mel.
    """

    def __init__(self, mel: MelStream, voice: Stream) -> None:
        self.mel, self.voice = mel, voice

    @torch.no_grad()
    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        """(B, T) further tokens, any number of them -> (B, N) the samples that are final now, maybe none."""
        mel = self.mel.push(tokens, last)
        return self.voice.push(mel, last) if mel.shape[2] or last else mel.new_zeros(len(mel), 0)
