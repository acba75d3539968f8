"""A ready vocoder through the same interface: HiFi-GAN as transformers has it. https://arxiv.org/abs/2010.05646

Of the open vocoders it is the one whose public 22.05 kHz weights (LJ Speech, VCTK and "universal", for speakers never heard) were
trained on the very mel that is used here (80 bins of 0 to 8 kHz, hop 256, natural logarithm), and whose network is kept in
transformers. Vocos' public weights are for 24 kHz and 100 bins, and so fit no mel of ours.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from speechlm.nn.generator import Generator, Spoken
from speechlm.nn.safe_pt import read_pt
from speechlm.nn.vocoder_stream import Overlap
from speechlm.nn.weight_norm import fold, torch_names

#: The published network "V1", for files that do not say their own.
V1: dict[str, Any] = {
    "model_in_dim": 80,
    "sampling_rate": 22_050,
    "upsample_initial_channel": 512,
    "upsample_rates": [8, 8, 2, 2],
    "upsample_kernel_sizes": [16, 16, 4, 4],
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "leaky_relu_slope": 0.1,
    "normalize_before": False,
}
#: HiFi-GAN's own names of the same settings.
CONFIG_NAMES = {"num_mels": "model_in_dim"}


class HifiGan(Generator):
    """HiFi-GAN with weights that are there.

    Args:
        weights: name or folder of a Hugging Face checkpoint; or HiFi-GAN's own file (`generator_v1`) with a `config.json`
            beside it, or none for the network "V1". No pickle is executed.

    Raises:
        ValueError: the file can not be read safely, or holds no HiFi-GAN.
    """

    def __init__(self, weights: str) -> None:
        path = Path(weights)
        network = _read_own(path) if path.is_file() else SpeechT5HifiGan.from_pretrained(weights)
        config = network.config
        super().__init__(config.model_in_dim, math.prod(config.upsample_rates), config.sampling_rate)
        self.network = network
        self.eval()  # as transformers hands models over

    def forward(
        self, mel: Tensor, mel_lens: Tensor | None = None, seeds: Tensor | None = None, f0: Tensor | None = None
    ) -> Spoken:
        """Waveforms of (B, M, F) log-mels, each of its own part of the batch alone: HiFi-GAN has no masks inside."""
        if mel_lens is None or bool((mel_lens == mel.shape[2]).all()):
            return Spoken(self._speak(mel), None)
        audio = mel.new_zeros(mel.shape[0], mel.shape[2] * self.hop_samples, dtype=torch.float32)
        for frames in sorted(set(mel_lens.tolist())):
            rows = (mel_lens == frames).nonzero().flatten()
            audio[rows, : frames * self.hop_samples] = self._speak(mel[rows, :, :frames])
        return Spoken(audio, None)

    def stream(self, batch_size: int = 1, seed: int = 0) -> "HifiGanStream":
        """Recordings spoken as their mels come, equal to those spoken whole."""
        return HifiGanStream(self)

    @property
    def lookahead_frames(self) -> int:
        """Frames on each side of a sample that it depends on."""
        config = self.network.config
        blocks = max(
            (kernel - 1) // 2 * (sum(dilations) + len(dilations))
            for kernel, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        )
        samples, fall = 3, 1  # the last convolution
        for rate, kernel in reversed(list(zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True))):
            samples += blocks * fall + (kernel - 1 - (kernel - rate) // 2) * fall
            fall *= rate
        return math.ceil((samples + 3 * fall) / fall)

    def _speak(self, mel: Tensor) -> Tensor:
        return self.network(mel.transpose(1, 2)).float().reshape(mel.shape[0], -1)


class HifiGanStream:
    """Recordings of one length that are being spoken by a HiFi-GAN.

    Args:
        hifigan: the network.
    """

    def __init__(self, hifigan: HifiGan) -> None:
        self.speech = Overlap(lambda mel: hifigan(mel).audio, hifigan.lookahead_frames, hifigan.hop_samples)

    @torch.no_grad()
    def push(self, mel: Tensor, last: bool = False) -> Tensor:
        """(B, M, F) further frames -> (B, N) samples that are final now."""
        return self.speech.push(mel, last)


def _read_own(path: Path) -> SpeechT5HifiGan:
    """HiFi-GAN's own file, its names turned into transformers'."""
    content = read_pt(path)
    weights = content.get("generator", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or "conv_pre.bias" not in weights:
        raise ValueError(f"{path} holds no generator of HiFi-GAN")
    network = SpeechT5HifiGan(SpeechT5HifiGanConfig(**_settings(path.parent / "config.json")))
    network.apply_weight_norm()
    renamed = {name.replace("ups.", "upsampler."): value for name, value in torch_names(weights).items()}
    standing = {"mean": network.mean, "scale": network.scale}  # transformers' own, which do nothing here
    try:
        network.load_state_dict(renamed | standing)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit their config: {error}") from error
    fold(network)
    return network


def _settings(path: Path) -> dict[str, Any]:
    """transformers' settings out of HiFi-GAN's own config, or those of "V1"."""
    if not path.exists():
        return V1
    own = json.loads(path.read_text(encoding="utf-8"))
    if str(own.get("resblock", "1")) != "1":
        raise ValueError(
            f"{path} describes a HiFi-GAN with blocks of type {own['resblock']!r}; only type '1' is known here"
        )
    renamed = {CONFIG_NAMES.get(name, name): value for name, value in own.items()}
    return V1 | {name: value for name, value in renamed.items() if name in V1}
