"""Tokens in as they come, mel out as soon as a chunk of them is complete; no frame is made twice, none is missing.

`CachedStream` is exact: keys, values and tails of every Euler step are kept, so that the stream is one pass over the whole
recording, done piece by piece. It needs a causal network. `WindowStream` runs any network, the released one too: each chunk is
made behind a prompt of the last few seconds, tokens and mel, as in the paper but with a prompt of bounded length.
"""

from typing import Any

import torch
from torch import Tensor

from speechlm.nn.estimator import Conditions
from speechlm.nn.flow import euler
from speechlm.nn.hashed_noise import hashed_normal
from speechlm.nn.token_encoder import EncoderState
from speechlm.nn.token_input import require_ids
from speechlm.nn.token_to_mel import Prompt, Sampling, TokenToMel, doubled, told_and_not, undoubled

RELEASED = Sampling()


class MelStream:
    """Base of both forms: recordings of one length side by side, cut into chunks.

    Args:
        network: in eval mode.
        first_tokens: tokens of the first chunk, whole blocks of the network's encoder.
        chunk_tokens: tokens of each further chunk, likewise.
        seeds: (B,) int64 of the noise.
        speakers: (B, S).
        prompt: the known beginning, of the same length in every row. Blocks are counted from its first token, so that the first
            chunk may have fewer new tokens.
        sampling: see `Sampling`.

    Raises:
        ValueError: chunks that are not whole blocks, or prompts of several lengths.
    """

    def __init__(
        self,
        network: TokenToMel,
        seeds: Tensor,
        first_tokens: int = 10,
        chunk_tokens: int = 10,
        speakers: Tensor | None = None,
        prompt: Prompt | None = None,
        sampling: Sampling = RELEASED,
    ) -> None:
        block = network.block_tokens
        if min(first_tokens, chunk_tokens) < block or first_tokens % block or chunk_tokens % block:
            raise ValueError(
                f"first_tokens and chunk_tokens are whole blocks of {block} tokens, got {first_tokens} and {chunk_tokens}"
            )
        self.network, self.seeds, self.sampling = network, seeds, sampling
        self.speakers, self.chunk_tokens = speakers, chunk_tokens
        self.waiting = torch.zeros(len(seeds), 0, dtype=torch.long, device=seeds.device)
        self.position = 0  # of the first token that waits
        self.skip = 0  # frames of the prompt, which are not given out
        self.known: Tensor | None = None  # (B, M, F) of the prompt, as the flow sees it
        self.ended = False
        if prompt is not None:
            self._begin(prompt)
        self.border = max(self.waiting.shape[1] + first_tokens, block) // block * block  # where the next chunk ends

    @torch.no_grad()
    def push(self, tokens: Tensor, last: bool = False) -> Tensor:
        """(B, T) further tokens, any number of them -> (B, M, F) log-mel of the frames that are complete now, maybe none.

        Raises:
            ValueError: the stream has ended, or never had a token, or tokens of another shape or outside the codebook come.
        """
        self._check(tokens, last)
        self.waiting = torch.cat([self.waiting, tokens.to(self.waiting)], dim=1)
        self.ended = last
        made = [self.seeds.new_zeros(len(self.seeds), self.network.num_mels, 0, dtype=torch.float32)]
        while self.position + self.waiting.shape[1] >= self.border:
            made.append(self._advance(self.border))
            self.border += self.chunk_tokens
        if last and self.waiting.shape[1]:
            made.append(self._advance(self.position + self.waiting.shape[1]))
        return torch.cat(made, dim=2)

    def _advance(self, stop: int) -> Tensor:
        """Make the frames of the tokens up to `stop`."""
        count = stop - self.position
        tokens, self.waiting = self.waiting[:, :count], self.waiting[:, count:]
        mel = self._made(tokens, self.position, self._noise(self.position, stop))
        self.position = stop
        skipped = min(self.skip, mel.shape[2])
        self.skip -= skipped
        return mel[:, :, skipped:]

    def _made(self, tokens: Tensor, start: int, z: Tensor) -> Tensor:
        """(B, T) tokens from number `start` on and the noise of their frames -> (B, M, F) log-mel of these frames."""
        raise TypeError(f"{type(self).__name__} must define _made")

    def _noise(self, start: int, stop: int) -> Tensor:
        """(B, M, F) of the frames that tokens `start` to `stop` complete."""
        first, behind = self._frame(start), self._frame(stop)
        return hashed_normal(self.seeds, self.network.num_mels, behind - first, first) * self.sampling.temperature

    def _frame(self, token: int) -> int:
        return self.network.clock.frames_of_tokens(token)

    def _known(self, start: int, stop: int) -> Tensor:
        """(B, M, stop - start) what the prompt says of these frames."""
        size, bins = len(self.seeds), self.network.num_mels
        known = torch.zeros(size, bins, stop - start, device=self.seeds.device)
        if self.known is not None:
            part = self.known[:, :, start:stop]
            known[:, :, : part.shape[2]] = part
        return known

    def _begin(self, prompt: Prompt) -> None:
        lens = (*prompt.token_lens.tolist(), *prompt.mel_lens.tolist())
        width, frames = prompt.tokens.shape[1], prompt.mel.shape[2]
        if set(lens[: len(self.seeds)]) != {width} or set(lens[len(self.seeds) :]) != {frames}:
            raise ValueError(f"prompts of a stream are all {width} tokens and {frames} frames long, got {lens}")
        self.waiting = prompt.tokens.to(self.waiting)
        self.known = self.network.normalised(prompt.mel)
        self.skip = self._frame(width)

    def _check(self, tokens: Tensor, last: bool) -> None:
        if self.ended:
            raise ValueError("this stream has had its last tokens; open another one for another recording")
        if tokens.ndim != 2 or len(tokens) != len(self.seeds):
            raise ValueError(f"the stream takes tokens ({len(self.seeds)}, T), got {tuple(tokens.shape)}")
        require_ids(tokens, self.network.num_tokens)
        if last and not self.position + self.waiting.shape[1] + tokens.shape[1]:
            raise ValueError("a recording has at least one speech token, this stream had none")


class CachedStream(MelStream):
    """The exact stream of a causal network. What is kept grows neither with the recording nor with the prompt, where encoder
    and estimator have a limit to the left."""

    def __init__(self, network: TokenToMel, *args: Any, **kwargs: Any) -> None:
        if not network.causal:
            raise ValueError(
                f"{type(network.length_regulator).__name__} with {type(network.estimator).__name__} sees what is to come; "
                f"stream it in windows"
            )
        super().__init__(network, *args, **kwargs)
        self.encoder: EncoderState | None = None
        self.regulator: Any = None
        self.last: Tensor | None = (
            None  # (B, 1, P * M) of the token before, which the next chunk's first frame may still hear
        )
        self.steps: list[Any] = [None] * self.sampling.steps

    def _made(self, tokens: Tensor, start: int, z: Tensor) -> Tensor:
        network, guidance = self.network, self.sampling.guidance
        first = self._frame(start)
        behind = first + z.shape[2]
        mu = self._mu(tokens, start, first, behind)
        conditions = told_and_not(Conditions(mu, self._speaker(), self._known(first, behind)), guidance)
        blocks = network.blocks(first, behind)

        def velocity(x: Tensor, t: Tensor, step: int) -> Tensor:
            x, t = doubled(x, guidance), t.expand(len(conditions.mu))
            v, self.steps[step] = network.estimator.extend(x, t, conditions, blocks, self.steps[step])
            return undoubled(v, guidance)

        return network.denormalised(euler(velocity, self.sampling.set_out(z, mu), self.sampling.times(z.device)))

    def _mu(self, tokens: Tensor, start: int, first: int, behind: int) -> Tensor:
        """(B, M, F) what the tokens say of the frames from `first` to `behind`."""
        network = self.network
        states, self.encoder = network.encoder.extend(network.input_embedding(tokens), self.encoder)
        spoken = network.encoder_proj(states)
        last = torch.zeros_like(spoken[:, :1]) if self.last is None else self.last
        self.last = spoken[:, -1:]
        frames = torch.arange(first, behind, device=tokens.device)
        spread = network.length_regulator.spread(torch.cat([last, spoken], dim=1), frames, network.clock, start - 1)
        mu, self.regulator = network.length_regulator.extend(spread, self.regulator)
        return mu

    def _speaker(self) -> Tensor:
        return self.network.speaker(self.speakers, len(self.seeds))


class WindowStream(MelStream):
    """A stream of any network: each chunk is made together with a window of tokens and mel before it.

    Args:
        network: in eval mode.
        seeds: (B,) int64 of the noise.
        window_tokens: so many tokens before a chunk are heard again, with their mel as the prompt; whole blocks of them.
        **kwargs: see `MelStream`.
    """

    def __init__(self, network: TokenToMel, seeds: Tensor, window_tokens: int = 50, **kwargs: Any) -> None:
        if window_tokens < 0:
            raise ValueError(f"window_tokens must be at least 0, got {window_tokens}")
        super().__init__(network, seeds, **kwargs)
        self.window_tokens = window_tokens
        self.tokens = self.waiting[:, :0]  # (B, T) of the window
        self.mel = seeds.new_zeros(len(seeds), network.num_mels, 0, dtype=torch.float32)  # (B, M, F) of the window

    def _made(self, tokens: Tensor, start: int, z: Tensor) -> Tensor:
        heard = self._shorten(start)
        before, window = self.mel.shape[2], torch.cat([self.tokens, tokens], dim=1)
        width = before + z.shape[2]
        known = self._known(self._frame(heard), self._frame(heard) + width)
        known[:, :, :before] = self.network.normalised(self.mel)
        lens, mel_lens = (torch.full_like(self.seeds, n) for n in (window.shape[1], width))
        z = torch.cat([self._noise(heard, start), z], dim=2)
        mel = self.network.follow(z, window, lens, mel_lens, known, self.speakers, self.sampling)
        given = self._given(self._frame(heard), before, mel.shape[2])
        self.tokens, self.mel = window, torch.cat([self.mel, given, mel[:, :, before + given.shape[2] :]], dim=2)
        return mel[:, :, before:]

    def _given(self, heard: int, before: int, width: int) -> Tensor:
        """(B, M, F) of the prompt's own mel, where frames from `heard` + `before` on to `heard` + `width` are its."""
        if self.known is None:
            return self.mel[:, :, :0]
        return self.network.denormalised(self.known[:, :, heard + before : heard + width])

    def _shorten(self, start: int) -> int:
        """Forget what lies before the window of a chunk from token `start` on; the number of the window's first token."""
        block = self.network.block_tokens
        heard = max(0, -(-(start - self.window_tokens) // block) * block)
        self.tokens = self.tokens[:, self.tokens.shape[1] - (start - heard) :]
        self.mel = self.mel[:, :, self.mel.shape[2] - (self._frame(start) - self._frame(heard)) :]
        return heard
