"""Mimi, the codec of Moshi, as a speech tokenizer; read from a transformers folder.

Source: Défossez et al. 2024, arXiv 2410.00037; https://huggingface.co/kyutai/mimi.
"""

from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import MimiConfig, MimiModel
from transformers.utils import cached_file

from speechlm.nn.pieces import join, split
from speechlm.tokens.clock import Clock
from speechlm.tokens.tokenizer import fingerprint

#: What of the configuration the weights' shapes do not tell and tokens depend on.
_SHAPE = (
    "sampling_rate", "upsampling_ratios", "kernel_size", "last_kernel_size", "residual_kernel_size", "dilation_growth_rate",
    "num_residual_layers", "use_causal_conv", "pad_mode", "compress", "use_conv_shortcut", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "hidden_act", "norm_eps", "sliding_window", "rope_parameters",
    "num_quantizers", "num_semantic_quantizers", "frame_rate",
)  # fmt: skip


class MimiTokens:
    """A `Tokenizer` that gives Mimi's codes, 12.5 frames per second of 24 kHz audio.

    With one codebook, the tokens are the first one's, which Mimi distils from WavLM: the semantic codes. With more, each frame's
    codes follow one another, first codebook first, and code c of codebook k is token `k * codebook_size + c`: 12.5 x `codebooks`
    tokens per second.

    Every recording is padded with zeros to a whole number of frames before Mimi sees it. Its encoder is causal, so what follows
    in a batch changes nothing; left to itself, it would repeat the last vector where a recording ends alone, and see zeros where
    one ends in a batch.

    Args:
        folder: name or folder of the model, in safetensors.
        codebooks: how many, from the first.
        window_seconds: longer recordings are seen in pieces of this length that know nothing of each other, so that memory is
            bounded; Mimi itself attends over 20 s.

    Raises:
        ValueError: the model has fewer codebooks, or a window is no whole number of frames.
    """

    def __init__(self, folder: str, codebooks: int = 1, window_seconds: float = 60.0) -> None:
        config = MimiConfig.from_pretrained(folder)
        if not config.num_semantic_quantizers <= codebooks <= config.num_quantizers:
            raise ValueError(
                f"{folder} has {config.num_quantizers} codebooks, {config.num_semantic_quantizers} of them semantic; "
                f"codebooks: {codebooks} is not from there"
            )
        self.clock = Clock(config.sampling_rate, config.frame_rate * codebooks, hop_samples=config.sampling_rate // 100)
        self.tokens_per_frame, self.codebook_size = codebooks, config.codebook_size
        self.num_codes = codebooks * config.codebook_size
        self.frame_samples = self.clock.samples_of_tokens(codebooks)
        self.window_samples = self.clock.num_samples(window_seconds)
        if self.window_samples <= 0 or self.window_samples % self.frame_samples:
            raise ValueError(
                f"window_seconds must be a whole number of frames of {self.frame_samples} samples, got {window_seconds}"
            )
        self.settings: dict[str, Any] = {
            "kind": "mimi",
            "clock": asdict(self.clock),
            "codebooks": codebooks,
            "window_samples": self.window_samples,
            "model": {name: getattr(config, name) for name in _SHAPE},
        }
        # The file's own names, which the version of transformers does not change.
        self.hash = fingerprint(self.settings, load_file(cached_file(folder, "model.safetensors")))
        self.model = MimiModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()

    @torch.no_grad()
    def tokenize(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) waveform, (B,) samples -> (B, T) speech tokens, -1 behind the end, and (B,) tokens."""
        pieces, piece_lens, owner = split(audio, audio_lens, self.window_samples)
        frames = (piece_lens + self.frame_samples - 1) // self.frame_samples
        pieces = F.pad(pieces, (0, int(frames.max()) * self.frame_samples - pieces.shape[1]))
        return join(self._codes(pieces), frames * self.tokens_per_frame, owner)

    def _codes(self, audio: Tensor) -> Tensor:
        """(B, N) whole frames -> (B, frames * codebooks) tokens, frame by frame."""
        encoded = self.model.encode(audio[:, None], num_quantizers=self.tokens_per_frame)
        codes = encoded.audio_codes  # (B, codebooks, frames)
        offsets = self.codebook_size * torch.arange(self.tokens_per_frame, device=codes.device)
        return (codes + offsets[:, None]).transpose(1, 2).flatten(1)

    def move_to(self, device: torch.device) -> None:
        """Compute there from now on."""
        self.model.to(device)
