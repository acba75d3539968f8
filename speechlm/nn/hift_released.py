"""HiFT's released weights, in and out: `hift.pt` of GLM-4-Voice and CosyVoice (no pickle is executed) and safetensors."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from speechlm.files import atomic_file, write_bytes_atomic
from speechlm.nn.hift import HiFT
from speechlm.nn.safe_pt import read_pt
from speechlm.nn.weight_norm import published_names, torch_names

PREFIX = "generator."  # of checkpoints that a training wrote


def read_hift(path: str | Path, sample_rate_hz: int = 22_050) -> HiFT:
    """A HiFT with the weights of a file, its shape taken from theirs.

    Args:
        path: `hift.pt` or `hift.safetensors`.
        sample_rate_hz: of its waveform, which the weights do not say.

    Raises:
        ValueError: the file can not be read without executing code, or holds no HiFT of a known form.
    """
    weights = torch_names(_read(Path(path)))
    try:
        hift = _shaped(weights, sample_rate_hz)
    except (KeyError, IndexError) as error:
        raise ValueError(f"{path} holds no HiFT vocoder: it lacks {error}") from error
    own = hift.state_dict()
    wrong = [f"not in the model: {name}" for name in sorted(weights.keys() - own.keys())]
    wrong += [f"missing: {name}" for name in sorted(own.keys() - weights.keys())]
    wrong += [
        f"shape of {name}: model {tuple(own[name].shape)}, file {tuple(weights[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if own[name].shape != weights[name].shape
    ]
    if wrong:
        raise ValueError(f"the weights in {path} are not those of a HiFT vocoder:\n  " + "\n  ".join(wrong[:20]))
    hift.load_state_dict(weights)
    return hift


def write_hift(hift: HiFT, path: str | Path) -> None:
    """Write a HiFT's weights under their released names, whole or not at all: `.safetensors`, or `.pt` for the released code.

    Raises:
        ValueError: neither ending, or the weights have been folded and are no longer those of the released form.
    """
    path = Path(path)
    weights = {name: value.detach().cpu().contiguous() for name, value in published_names(hift.state_dict()).items()}
    if "conv_pre.weight_g" not in weights:
        raise ValueError("the weights of this HiFT were folded for use; write one that was not")
    if path.suffix == ".safetensors":
        write_bytes_atomic(path, save(weights))
    elif path.suffix == ".pt":
        with atomic_file(path) as file:
            torch.save(weights, file)
    else:
        raise ValueError(f"a HiFT is written to .safetensors or .pt, got {path}")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else read_pt(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # both raise whatever the bytes suggest
        raise ValueError(f"{path} can not be read safely ({_first_line(error)})") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} is no file of weights: expected names and tensors")
    return {name.removeprefix(PREFIX): value for name, value in weights.items()}


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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
