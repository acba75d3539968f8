"""A source and its filter over a stream of mel frames: pitch, excitation and filter each a little behind the one before."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speechlm.nn.vocoder_stream import Overlap

if TYPE_CHECKING:
    from speechlm.nn.hift import HiFT
    from speechlm.nn.source_filter import SourceFilter


class HiFTStream:
    """Recordings of one length that are being spoken. What is kept is a few dozen mel frames and their excitation.

    The excitation's phase goes on where it stopped, and its noise is that of its place in the recording, so that the stream says
    what the whole recording would. It is `lookahead_frames` behind its mel.

    Args:
        hift: the network.
        batch_size: recordings side by side.
        seed: of the excitation, the same for each.
    """

    def __init__(self, hift: "HiFT | SourceFilter", batch_size: int = 1, seed: int = 0) -> None:
        self.hift = hift
        self.seeds = torch.full((batch_size,), seed, dtype=torch.long)
        self.pitch = Overlap(hift.pitch, hift.f0_predictor.reach)
        self.speech = Overlap(self._filter, hift.reach_frames, hift.hop_samples, hift.past_frames)
        self.waiting: Tensor | None = None  # (B, M, F) frames whose pitch is not final
        self.phase: Tensor | None = None
        self.excited = 0  # frames that have their excitation
        self.ended = False

    @torch.no_grad()
    def push(self, mel: Tensor, last: bool = False) -> Tensor:
        """(B, M, F) further frames -> (B, N) samples that are final now.

        Raises:
            ValueError: the stream has ended, or frames of another shape come.
        """
        self._check(mel)
        self.ended = last
        f0 = self.pitch.push(mel, last)
        mel = mel if self.waiting is None else torch.cat([self.waiting, mel], dim=2)
        ready, self.waiting = mel[:, :, : f0.shape[1]], mel[:, :, f0.shape[1] :]
        return self.speech.push(torch.cat([ready, self._excited(f0)], dim=1), last)

    def _excited(self, f0: Tensor) -> Tensor:
        """(B, F) Hz -> (B, excitation's width, F) the excitation of each frame."""
        if f0.shape[1] == 0:
            return f0.new_zeros(f0.shape[0], self.hift.excitation_width, 0)
        source, self.phase = self.hift.excite(f0, self.seeds.to(f0.device), self.excited, self.phase)
        self.excited += f0.shape[1]
        return source.unflatten(1, (f0.shape[1], -1)).transpose(1, 2)

    def _filter(self, frames: Tensor) -> Tensor:
        mel, source = frames.split([self.hift.num_mels, self.hift.excitation_width], dim=1)
        return self.hift.filter(mel, source.transpose(1, 2).flatten(1))

    def _check(self, mel: Tensor) -> None:
        expected = (len(self.seeds), self.hift.num_mels)
        if self.ended:
            raise ValueError("this stream has had its last frames; open another one for another recording")
        if mel.ndim != 3 or tuple(mel.shape[:2]) != expected:
            raise ValueError(f"the stream takes mel frames ({expected[0]}, {expected[1]}, F), got {tuple(mel.shape)}")
