"""Whisper's encoder with a bottleneck in its middle: causal convolutions, block-causal attention, average pooling, a quantizer.

Built from transformers' own layers, so any Whisper checkpoint fits. Runs on audio of any length up to 30 s without padding to
30 s. Source: the released GLM-4-Voice tokenizer; arXiv 2411.17607 section 2.1, 2412.02612 section 2.1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speechlm.nn.block_attention import AttentionForm, BlockAttention, Seen, visible
from speechlm.nn.masks import length_mask
from speechlm.nn.quantizer import Quantized, Quantizer

POSITIONS_PER_SEC = 50.0  # two mel frames per encoder position

QuantizerFactory = Callable[[int], Quantizer]
SecondPositions = Literal["moved", "first"]
PaddedEnd = Literal["heard", "masked"]


@dataclass(frozen=True)
class Bottleneck:
    """Where and how the encoder is narrowed. The defaults are the released tokenizer's; None stands for the middle layer.

    Args:
        after_layer: layers before the quantiser; half of the encoder where None.
        pool_after: layers before pooling; `after_layer` where None, as released. Pooling earlier makes every layer above cheaper.
        block_sec: attention sees all of the past and its own block of this many seconds; None sees the whole recording. A stream
            gives the tokens of a block when the block is over, so this is its delay: 4 s as released, less where trained so.
        causal_convs: convolutions see the past only, with Whisper's weights moved to the left edge.
        second_positions: how positions get past the quantiser. "moved": Whisper's table, pooled, is taken off the vectors before
            the quantiser and starts the learnt table behind it, so that codes need not spell out the time and, before training,
            nothing but the quantiser is new. "first": vectors keep their positions and the learnt table starts from Whisper's
            first rows, as released; the sum of two positions is new to the layers above, and whisper-tiny.en's loss at 12.5 Hz
            then starts at 6 to 9 instead of 0.2, before any quantisation.
        padded_end: what attention makes of the silence that fills a recording up to its last whole token. "heard": it is heard
            like the recording. "masked": nothing looks at it, as released, though it is pooled into the last token all the same.
        activation_checkpointing: recompute each layer in the backward pass; less memory for a third more arithmetic.
    """

    after_layer: int | None = None
    pool_after: int | None = None
    block_sec: float | None = 4.0
    causal_convs: bool = True
    second_positions: SecondPositions = "moved"
    padded_end: PaddedEnd = "heard"
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.second_positions not in ("moved", "first"):
            raise ValueError(f"second_positions must be 'moved' or 'first', got {self.second_positions!r}")
        if self.padded_end not in ("heard", "masked"):
            raise ValueError(f"padded_end must be 'heard' or 'masked', got {self.padded_end!r}")


class Encoded(NamedTuple):
    """What the whole encoder gives."""

    states: Tensor  # (B, T, D) for the decoder's cross-attention
    state_lens: Tensor  # (B,)
    quantized: Quantized | None  # None where no quantiser was asked for
    vectors: Tensor  # (B, T, D) before the quantiser


class WhisperVQEncoder(nn.Module):
    """The encoder of a Whisper checkpoint with pooling and quantiser.

    Args:
        encoder: transformers' encoder; its parts are taken over.
        pooling: encoder positions averaged into one token: 1, 2, 4, 8 for 50, 25, 12.5, 6.25 Hz.
        bottleneck: where and how.
        quantizer: makes the quantiser for a width; None leaves the vectors as they are.
    """

    pooled_positions: Tensor  # (ceil(1500 / pooling), D): what Whisper's position table adds to a pooled vector
    attention: AttentionForm = "auto"  # the others are for measuring

    def __init__(
        self,
        encoder: WhisperEncoder,
        pooling: int,
        bottleneck: Bottleneck | None = None,
        quantizer: QuantizerFactory | None = None,
    ) -> None:
        super().__init__()
        self.bottleneck = bottleneck or Bottleneck()
        self.pooling = pooling
        self.conv1, self.conv2 = encoder.conv1, encoder.conv2
        self.embed_positions = encoder.embed_positions.requires_grad_(False)
        self.layers, self.layer_norm = encoder.layers, encoder.layer_norm
        for conv in (self.conv1, self.conv2):
            conv.padding = (0,)  # padding is ours: left only, or both sides
        for layer in self.layers:
            layer.self_attn = BlockAttention(layer.self_attn)
        half = len(self.layers) // 2
        self.after_layer = half if self.bottleneck.after_layer is None else self.bottleneck.after_layer
        self.pool_after = self.after_layer if self.bottleneck.pool_after is None else self.bottleneck.pool_after
        if not 0 <= self.pool_after <= self.after_layer <= len(self.layers) or self.after_layer == 0:
            raise ValueError(
                f"the encoder has {len(self.layers)} layers, pooling after layer {self.pool_after} and a quantiser after layer "
                f"{self.after_layer} are not inside it in this order; edit `bottleneck.pool_after` and `bottleneck.after_layer`"
            )
        self.block_positions = self._block_positions()
        self.register_buffer("pooled_positions", torch.empty(0), persistent=False)
        self.register_load_state_dict_post_hook(WhisperVQEncoder._pool_positions)
        self._pool_positions()
        self.embed_positions2 = nn.Embedding.from_pretrained(self._second_positions(), freeze=False)
        self.quantizer = quantizer(encoder.config.d_model) if quantizer else None

    @property
    def max_tokens(self) -> int:
        """Whole tokens that the position table has room for: 375 at 12.5 Hz, 187 (29.92 s) at 6.25 Hz."""
        return len(self.embed_positions.weight) // self.pooling

    def forward(self, mel: Tensor, mel_lens: Tensor, quantize: bool = True) -> Encoded:
        """(B, M, F) log-mel and (B,) frames -> states for the decoder. `quantize=False` lets the pooled vectors pass."""
        x, lens = self.below(mel, mel_lens)
        vectors, quantized = x, None
        if quantize and self.quantizer is not None:
            quantized = self.quantizer(x, length_mask(lens, x.shape[1]))
            x = quantized.vectors
        return Encoded(self.above(x, lens), lens, quantized, vectors)

    def below(self, mel: Tensor, mel_lens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, F) log-mel and (B,) frames -> (B, T, D) pooled vectors, one per speech token, and (B,) tokens."""
        num_tokens = -(-mel_lens // (2 * self.pooling))
        x = self._convs(mel, num_tokens * 2 * self.pooling)
        lens = num_tokens * self.pooling if self.bottleneck.padded_end == "heard" else (mel_lens + 1) // 2
        self._check_length(x.shape[1])
        positions = visible(lens, x.shape[1], self.block_positions, x.dtype, self.attention)
        x = self._run(self.layers[: self.pool_after], x + self.positions(0, x.shape[1]).to(x), positions)
        x, lens = self.pool(x), num_tokens
        if self.pool_after < self.after_layer:
            tokens = visible(lens, x.shape[1], self.block_tokens, x.dtype, self.attention)
            x = self._run(self.layers[self.pool_after : self.after_layer], x, tokens)
        return self.without_positions(x, 0), lens

    def above(self, x: Tensor, lens: Tensor) -> Tensor:
        """(B, T, D) token vectors and (B,) tokens -> (B, T, D) states for the decoder."""
        x = x + self.embed_positions2.weight[: x.shape[1]].to(x)
        tokens = visible(lens, x.shape[1], self.block_tokens, x.dtype, self.attention)
        return self.layer_norm(self._run(self.layers[self.after_layer :], x, tokens))

    def positions(self, start: int, end: int) -> Tensor:
        """(end - start, D) rows of Whisper's position table; zeros where a last token reaches over its end."""
        rows = self.embed_positions.weight[start:end]
        return F.pad(rows, (0, 0, 0, end - start - len(rows)))

    def pool(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, ceil(S / pooling), D), zeros behind the end counted as released."""
        if self.pooling == 1:
            return x
        x = F.pad(x.transpose(1, 2), (0, -x.shape[1] % self.pooling))
        return F.avg_pool1d(x, self.pooling).transpose(1, 2)

    def without_positions(self, x: Tensor, start: int) -> Tensor:
        """(B, T, D) pooled vectors, the first of them token `start`, as the quantiser gets them."""
        if self.bottleneck.second_positions == "first":
            return x
        return x - self.pooled_positions[start : start + x.shape[1]].to(x)

    def _convs(self, mel: Tensor, mel_lens: Tensor) -> Tensor:
        """(B, M, F) log-mel and (B,) frames of whole tokens -> (B, S, D), S = ceil(F / 2)."""
        pad = (2, 0) if self.bottleneck.causal_convs else (1, 1)
        x = F.gelu(self.conv1(F.pad(mel, pad)))
        if not self.bottleneck.causal_convs:  # what lies behind a recording's end must read as the zeros of a lone one
            x = x * length_mask(mel_lens, x.shape[-1])[:, None]
        return F.gelu(self.conv2(F.pad(x, pad))).transpose(1, 2)

    def _run(self, layers: nn.ModuleList, x: Tensor, seen: Seen) -> Tensor:
        for layer in layers:
            if self.bottleneck.activation_checkpointing and self.training:
                x = checkpoint(layer, x, seen, use_reentrant=False)
            else:
                x = layer(x, seen)
        return x

    def _block_positions(self) -> int | None:
        if self.bottleneck.block_sec is None:
            return None
        positions = round(self.bottleneck.block_sec * POSITIONS_PER_SEC, 6)
        if positions <= 0 or positions % self.pooling:
            raise ValueError(
                f"an attention block of {self.bottleneck.block_sec} s is {positions:g} positions at {POSITIONS_PER_SEC} Hz, "
                f"which tokens of {self.pooling} positions do not divide; edit `bottleneck.block_sec` or `clock.token_rate_hz`"
            )
        return int(positions)

    @property
    def block_tokens(self) -> int | None:
        """Tokens in an attention block."""
        return self.block_positions and self.block_positions // self.pooling

    def _second_positions(self) -> Tensor:
        moved = self.bottleneck.second_positions == "moved"
        own = self.embed_positions.weight.detach()[: len(self.pooled_positions)]
        return (self.pooled_positions if moved else own).clone()

    def _pool_positions(self, *_: object) -> None:
        """Average the position table once, and again when weights have been loaded over it."""
        self.pooled_positions = self.pool(self.embed_positions.weight.detach()[None])[0]

    def _check_length(self, positions: int) -> None:
        limit = len(self.embed_positions.weight)
        if positions > -(-limit // self.pooling) * self.pooling:
            raise ValueError(
                f"audio of {positions / POSITIONS_PER_SEC:g} s is longer than the {limit / POSITIONS_PER_SEC:g} s Whisper can "
                f"see; cut it first (`tokenize` does)"
            )
