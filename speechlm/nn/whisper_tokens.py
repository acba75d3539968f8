"""The lower half of a VQ-Whisper, which is all that speech tokens need: log-mel, encoder up to the quantiser, codes."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from speechlm.nn.log_mel import LogMel
from speechlm.nn.masks import length_mask
from speechlm.nn.pieces import join, split
from speechlm.nn.streaming_whisper import TokenStream
from speechlm.nn.whisper_encoder import WhisperVQEncoder
from speechlm.tokens.clock import Clock
from speechlm.tokens.tokenizer import fingerprint

#: Buffers of a quantiser that its next update needs and its codes do not.
_TRAINING_ONLY = ("ema_count", "ema_weight", "num_updates", "frames_seen", "pool")


@torch.no_grad()
def tokenize(
    log_mel: LogMel, encoder: WhisperVQEncoder, max_samples: int, audio: Tensor, audio_lens: Tensor
) -> tuple[Tensor, Tensor]:
    """Waveforms of any length to speech tokens.

    Recordings longer than Whisper sees (30 s) are cut into pieces of that length that know nothing of each other.

    Args:
        log_mel: features.
        encoder: with a quantiser.
        max_samples: in one piece.
        audio: (B, N) in [-1, 1].
        audio_lens: (B,) samples.

    Returns:
        (B, T) codes, -1 behind each recording's end, and (B,) tokens.

    Raises:
        ValueError: there is no quantiser, or no codebook in it yet.
    """
    if encoder.quantizer is None:
        raise ValueError("this model has no quantizer, so it has no speech tokens; set `quantizer` in the config")
    if not encoder.quantizer.ready:
        raise ValueError("the codebook has not been made from data yet; train past the quantizer's `init_updates`")
    pieces, piece_lens, owner = split(audio, audio_lens, max_samples)
    x, lens = encoder.below(*log_mel(pieces, piece_lens))
    return join(encoder.quantizer(x, length_mask(lens, x.shape[1])).codes, lens, owner)


class WhisperTokens:
    """A `Tokenizer` out of the parts of a VQ-Whisper; layers above the quantiser are let go.

    Args:
        log_mel: features, as the model was trained on.
        encoder: with a quantiser that has its codebook; taken over, its layers above are let go.
        clock: rates.

    Raises:
        ValueError: the encoder has no quantiser, or no codebook yet.
    """

    def __init__(self, log_mel: LogMel, encoder: WhisperVQEncoder, clock: Clock) -> None:
        if encoder.quantizer is None or not encoder.quantizer.ready:
            raise ValueError("a tokenizer needs a quantizer with a codebook; this model has none, or none yet")
        self.clock = clock
        self.num_codes = encoder.quantizer.num_codes
        self.tokens_per_frame = 1
        self.window_samples = clock.samples_of_tokens(encoder.max_tokens)
        self.settings = _settings(log_mel, encoder, clock)
        self.log_mel = log_mel
        self.encoder = encoder.eval()
        encoder.layers = encoder.layers[: encoder.after_layer]
        del encoder.embed_positions2, encoder.layer_norm
        self.hash = fingerprint(self.settings, _weights(self.encoder))

    def tokenize(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) waveform, (B,) samples -> (B, T) speech tokens, -1 behind the end, and (B,) tokens."""
        return tokenize(self.log_mel, self.encoder, self.window_samples, audio, audio_lens)

    def stream(self, approximate_floor: bool = False) -> TokenStream:
        """Tokens of a recording that is still arriving, see `TokenStream`."""
        return TokenStream(self.log_mel, self.encoder, approximate_floor)

    def move_to(self, device: torch.device) -> None:
        """Compute there from now on."""
        self.log_mel.to(device)
        self.encoder.to(device)


def _settings(log_mel: LogMel, encoder: WhisperVQEncoder, clock: Clock) -> dict[str, Any]:
    """Everything besides the weights that a token depends on."""
    bottleneck = asdict(encoder.bottleneck)
    del bottleneck["activation_checkpointing"]
    first = encoder.layers[0]
    return {
        "kind": "whisper",
        "clock": asdict(clock),
        "mel_bins": log_mel.filters.shape[1],
        "floor": log_mel.floor,
        "bottleneck": {**bottleneck, "after_layer": encoder.after_layer, "pool_after": encoder.pool_after},
        "layers": {"heads": first.self_attn.num_heads, "activation": type(first.activation_fn).__name__},
        "quantizer": type(encoder.quantizer).__name__,
        "num_codes": encoder.quantizer.num_codes if encoder.quantizer else 0,
    }


def _weights(encoder: WhisperVQEncoder) -> dict[str, Tensor]:
    """Whatever a token depends on; of the quantiser also what is in no checkpoint, such as the levels of FSQ."""
    assert encoder.quantizer is not None
    kept = {f"quantizer.{name}": buffer for name, buffer in encoder.quantizer.named_buffers()}
    state = {**encoder.state_dict(), **kept}
    return {name: value for name, value in state.items() if name.rsplit(".", 1)[-1] not in _TRAINING_ONLY}
