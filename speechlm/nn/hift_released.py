"""HiFT's released weights, in and out: `hift.pt` of GLM-4-Voice and CosyVoice (no pickle is executed) and safetensors."""

import re
from pathlib import Path

from torch import Tensor

from speechlm.nn.hift import HiFT
from speechlm.nn.weight_norm import published_names, torch_names
from speechlm.nn.weights import fill, read_released, write_released

PREFIX = "generator."  # of checkpoints that a training wrote


def read_hift(path: str | Path, sample_rate_hz: int = 22_050) -> HiFT:
    """A HiFT with the weights of a file, its shape taken from theirs.

    Args:
        path: `hift.pt` or `hift.safetensors`.
        sample_rate_hz: of its waveform, which the weights do not say.

    Raises:
        ValueError: the file can not be read without executing code, or holds no HiFT of a known form.
    """
    weights = torch_names({name.removeprefix(PREFIX): value for name, value in read_released(Path(path)).items()})
    try:
        hift = _shaped(weights, sample_rate_hz)
    except (KeyError, IndexError) as error:
        raise ValueError(f"{path} holds no HiFT vocoder: it lacks {error}") from error
    fill(hift, weights, path, "a HiFT vocoder")
    return hift


def write_hift(hift: HiFT, path: str | Path) -> None:
    """Write a HiFT's weights under their released names, whole or not at all: `.safetensors`, or `.pt` for the released code.

    Raises:
        ValueError: neither ending, or the weights have been folded and are no longer those of the released form.
    """
    weights = published_names(hift.state_dict())
    if "conv_pre.weight_g" not in weights:
        raise ValueError("the weights of this HiFT were folded for use; write one that was not")
    write_released(weights, Path(path), "a HiFT")


def _shaped(weights: dict[str, Tensor], sample_rate_hz: int) -> HiFT:
    """A network of the shape that its weights have."""
    pre = weights["conv_pre.parametrizations.weight.original1"]
    post = weights["conv_post.parametrizations.weight.original1"]
    ups = _listed(weights, r"ups\.(\d+)\.parametrizations\.weight\.original1")
    blocks = _listed(weights, r"resblocks\.(\d+)\.convs1\.0\.parametrizations\.weight\.original1")
    sources = _listed(weights, r"source_resblocks\.(\d+)\.convs1\.0\.parametrizations\.weight\.original1")
    kernels = tuple(up.shape[2] for up in ups)
    stft_size = post.shape[0] - 2
    return HiFT(
        num_mels=pre.shape[1],
        channels=pre.shape[0],
        f0_channels=weights["f0_predictor.classifier.weight"].shape[1],
        upsample_rates=tuple(kernel // 2 for kernel in kernels),  # of all released ones
        upsample_kernels=kernels,
        resblock_kernels=tuple(block.shape[2] for block in blocks[: len(blocks) // len(ups)]),
        source_kernels=tuple(source.shape[2] for source in sources),
        stft_size=stft_size,
        stft_hop=stft_size // 4,
        harmonics=weights["m_source.l_linear.weight"].shape[1] - 1,
        sample_rate_hz=sample_rate_hz,
    )


def _listed(weights: dict[str, Tensor], pattern: str) -> list[Tensor]:
    """Tensors whose name has a number, in its order."""
    found = {int(match[1]): value for name, value in weights.items() if (match := re.fullmatch(pattern, name))}
    if not found:
        raise KeyError(pattern)
    return [found[i] for i in sorted(found)]
