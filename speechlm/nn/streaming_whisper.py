"""Speech tokens of audio that is still arriving: the tokens of the whole recording, each frame's work done once.

Attention sees the past and its own block, so the tokens of a block are final when the block's last sample has come, and come out
then: the algorithmic delay of a token is the time to the end of its block, at most `block_sec`, half of it on average. Everything
is computed block by block, whatever the sizes of the chunks, so that these make no difference, not even in rounding.

What is kept from block to block: 360 samples of the log-mel's windows, the loudest frame so far, two mel frames and one output of
the first convolution, and each layer's keys and values. A block is a whole number of tokens, so pooling leaves no remainder.
As in the offline form, every 30 s everything starts anew, which bounds memory and work for a stream of any length.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.nn.block_attention import KeyValueCache
from speechlm.nn.log_mel import HOP, N_FFT, SAMPLE_RATE_HZ, LogMel
from speechlm.nn.whisper_encoder import WhisperVQEncoder

SAMPLES_PER_POSITION = 2 * HOP
EDGE = N_FFT // 2  # samples mirrored before the first
TAIL = EDGE + HOP  # samples before a block that the last mel frame to begin before it sees


class TokenStream:
    """One recording. Any number of streams may be open over the same model; each keeps its own caches.

    Args:
        log_mel: features; floor "running".
        encoder: with causal convolutions and a quantiser that has its codebook, in eval mode.
        approximate_floor: permit the floor "clip", which hangs from the loudest frame of the whole recording and so can not be
            known before its end: the loudest frame up to the end of the block stands in for it. Tokens then may differ from the
            offline ones until the loudest frame has been heard; docs/results.md says how often.

    Raises:
        ValueError: the model can not be streamed; the message says why.
    """

    def __init__(self, log_mel: LogMel, encoder: WhisperVQEncoder, approximate_floor: bool = False) -> None:
        _check_model(log_mel, encoder, approximate_floor)
        self.log_mel, self.encoder = log_mel, encoder
        self.piece_samples = encoder.max_tokens * encoder.pooling * SAMPLES_PER_POSITION
        self.block_samples = min(self.piece_samples, (encoder.block_positions or 10**9) * SAMPLES_PER_POSITION)
        self.num_samples = 0  # heard so far
        self.num_tokens = 0  # given so far
        self.ended = False
        self._waiting = log_mel.window.new_empty(self.block_samples)  # filled up to _filled
        self._filled = 0
        self._piece = _Piece(log_mel, encoder)

    @property
    def delay_sec(self) -> float:
        """The longest that a sample waits for the token it is in, besides computing: a block."""
        return self.block_samples / SAMPLE_RATE_HZ

    @torch.no_grad()
    def push(self, audio: Tensor) -> Tensor:
        """(N,) further samples in [-1, 1], any N -> (T,) tokens that are final now and were not before; T may be 0.

        Raises:
            ValueError: the stream has ended, or the samples are not a row of finite numbers; the stream is as before.
        """
        self._check(audio)
        audio = audio.to(self._waiting)
        self.num_samples += len(audio)
        made = []
        while len(audio):
            taken, audio = audio.split([n := min(len(audio), self._room), len(audio) - n])
            self._waiting[self._filled : self._filled + n] = taken
            self._filled += n
            if self._room == 0:
                made.append(self._block())
        return self._given(made)

    @torch.no_grad()
    def flush(self) -> Tensor:
        """The recording ends -> (T,) its last tokens, the last one perhaps only partly filled.

        Raises:
            ValueError: the stream has ended before.
        """
        self._check(self._waiting[:0])
        self.ended = True
        made = []
        if self._filled:
            whole = -(-self._filled // self.log_mel.pad_to) * self.log_mel.pad_to
            silence = whole - self._filled
            self._waiting[self._filled : whole] = 0.0
            self._filled = whole
            made.append(self._block(silence))
        return self._given(made)

    @property
    def _room(self) -> int:
        """Samples up to the end of the block, or of the piece."""
        return min(self.block_samples, self.piece_samples - self._piece.num_samples) - self._filled

    def _block(self, silence: int = 0) -> Tensor:
        codes = self._piece.block(self._waiting[: self._filled], silence)
        self._filled = 0
        if self._piece.num_samples == self.piece_samples:
            self._piece = _Piece(self.log_mel, self.encoder)
        return codes

    def _given(self, made: list[Tensor]) -> Tensor:
        tokens = torch.cat(made) if made else self._waiting.new_empty(0, dtype=torch.long)
        self.num_tokens += len(tokens)
        return tokens

    def _check(self, audio: Tensor) -> None:
        if self.ended:
            raise ValueError("this stream has ended; open another one for another recording")
        if audio.ndim != 1 or not audio.is_floating_point():
            raise ValueError(f"a stream takes a row (N,) of samples in [-1, 1], got {audio.dtype} {tuple(audio.shape)}")
        if not bool(audio.isfinite().all()):
            raise ValueError("the samples contain NaN or infinity; the stream goes on without this chunk")


class _Piece:
    """What the network sees as one recording: up to 30 s, block after block."""

    def __init__(self, log_mel: LogMel, encoder: WhisperVQEncoder) -> None:
        self.log_mel, self.encoder = log_mel, encoder
        self.num_samples = 0
        self.tail: Tensor | None = None  # (360,) samples
        self.loudest = log_mel.window.new_full((1, 1, 1), -torch.inf)
        # Zeros are what causal convolutions see before the start.
        self.mel = log_mel.window.new_zeros(1, log_mel.filters.shape[1], 2)
        self.conv1: Tensor | None = None  # (1, D, 1)
        limits = [
            encoder.max_tokens * (encoder.pooling if i < encoder.pool_after else 1) for i in range(encoder.after_layer)
        ]
        self.pasts = [KeyValueCache(limit) for limit in limits]

    def block(self, audio: Tensor, silence: int) -> Tensor:
        """The next block.

        Args:
            audio: (n,) samples of a whole block, or of the whole tokens that end the piece.
            silence: how many of them only fill the last token.

        Returns:
            (T,) codes.
        """
        encoder = self.encoder
        unseen = silence // SAMPLES_PER_POSITION if encoder.bottleneck.padded_end == "masked" else 0
        start = self.num_samples // SAMPLES_PER_POSITION
        x = self._convs(self._features(audio)).transpose(1, 2)
        self.num_samples += len(audio)
        x = x + encoder.positions(start, start + x.shape[1]).to(x)
        for i, past in enumerate(self.pasts):
            past.unseen = unseen if i < encoder.pool_after else 0
            x = encoder.layers[i](encoder.pool(x) if i == encoder.pool_after else x, past)
        x = x if encoder.pool_after < encoder.after_layer else encoder.pool(x)
        x = encoder.without_positions(x, start // encoder.pooling)
        assert encoder.quantizer is not None
        return encoder.quantizer(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)).codes[0]

    def _features(self, audio: Tensor) -> Tensor:
        """(n,) samples -> (1, M, F) features of the frames that end inside them: all that the block's positions look at.

        The last frame that begins in the block is left to the next; the recording's mirrored right edge is never seen.
        """
        before = audio[1 : EDGE + 1].flip(0) if self.tail is None else self.tail
        audio = torch.cat([before, audio])
        self.tail = audio[-TAIL:].clone()
        mel = self.log_mel.log_power(audio[None])
        loudest = torch.maximum(self.log_mel.loudest(mel), self.loudest)
        self.loudest = loudest[:, :, -1:]
        return self.log_mel.floored(mel, loudest)

    def _convs(self, mel: Tensor) -> Tensor:
        """(1, M, F) -> (1, D, S) positions."""
        mel = torch.cat([self.mel, mel], dim=2)
        self.mel = mel[:, :, -2:].clone()
        x = F.gelu(self.encoder.conv1(mel))
        x = F.pad(x, (2, 0)) if self.conv1 is None else torch.cat([self.conv1, x], dim=2)
        self.conv1 = x[:, :, -1:].clone()
        return F.gelu(self.encoder.conv2(x))


def _check_model(log_mel: LogMel, encoder: WhisperVQEncoder, approximate_floor: bool) -> None:
    if encoder.quantizer is None or not encoder.quantizer.ready:
        raise ValueError("a stream of tokens needs a quantizer with a codebook; this model has none, or none yet")
    if encoder.training:
        raise ValueError("a stream needs a model in eval mode; call `.eval()` on it first")
    if not encoder.bottleneck.causal_convs:
        raise ValueError(
            "convolutions that see the future can not be streamed; train with `bottleneck.causal_convs: true`"
        )
    if log_mel.floor == "clip" and not approximate_floor:
        raise ValueError(
            "this model's log-mel floor 'clip' hangs from the loudest frame of the whole recording, which is not known before "
            "its end, so a stream can not give the offline tokens; train with `floor: running`, or pass `approximate_floor=True`"
        )
