"""The released GLM-4-Voice tokenizer's files: its configuration and state-dict names, to and from ours."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.whisper_decoder import WhisperTextDecoder
from speechlm.nn.whisper_encoder import POSITIONS_PER_SEC, Bottleneck, WhisperVQEncoder

#: Released name of each buffer of our quantiser, under `model.encoder.`.
_CODEBOOK = {"codebook": "codebook.weight", "ema_count": "ema_count", "ema_weight": "ema_weight"}


def read_config(folder: str | Path) -> dict:
    """The `config.json` of a released tokenizer folder.

    Raises:
        ValueError: the folder holds some other model.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    if "quantize_vocab_size" not in config:
        raise ValueError(f"{folder} is not a GLM-4-Voice tokenizer: its config.json has no quantize_vocab_size")
    if config["pooling_position"] != config["quantize_position"] or config["pooling_type"] != "avg":
        raise ValueError(
            f"{folder} pools ({config['pooling_type']}) after layer {config['pooling_position']} and quantises after layer "
            f"{config['quantize_position']}; only average pooling right before the quantiser can be loaded"
        )
    return config


def bottleneck_of(config: dict) -> Bottleneck:
    """Our settings for a released configuration."""
    block = config["quantize_causal_block_size"]
    return Bottleneck(
        after_layer=config["quantize_position"],
        block_sec=block / POSITIONS_PER_SEC if block else None,
        causal_convs=config["encoder_causal_convolution"],
        second_positions="first",
    )


def quantizer_of(config: dict, dim: int) -> EmaVQ:
    """The released quantiser, past its initialisation."""
    return EmaVQ(
        dim,
        config["quantize_vocab_size"],
        decay=config["quantize_ema_decay"],
        commitment=config["quantize_loss_scale"] * config["quantize_commit_coefficient"],
        restart_every=config["quantize_restart_interval"],
        restart_below=config["quantize_ema_decay"] ** config["quantize_restart_interval"],
        init="random",
    )


def ours(state: dict[str, Tensor], prefix: str = "model.encoder.") -> dict[str, Tensor]:
    """Released encoder tensors under our names, the `prefix` taken off."""
    renamed = {theirs: f"quantizer.{mine}" for mine, theirs in _CODEBOOK.items()}
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {renamed.get(name, name): value for name, value in own.items()}


def theirs(state: dict[str, Tensor], prefix: str = "model.encoder.") -> dict[str, Tensor]:
    """Our encoder tensors under released names; what only training needs is left out."""
    renamed = {f"quantizer.{mine}": released for mine, released in _CODEBOOK.items()}
    kept = {n: v for n, v in state.items() if not n.startswith("quantizer.") or n in renamed}
    return {prefix + renamed.get(name, name): value for name, value in kept.items()}


def load_tokenizer(folder: str | Path) -> tuple[WhisperVQEncoder, WhisperTextDecoder]:
    """Encoder and decoder of a released tokenizer folder (safetensors; nothing in it can execute).

    Raises:
        ValueError: a tensor is missing or does not fit.
    """
    config = read_config(folder)
    whisper = WhisperConfig.from_dict(config)
    whisper._attn_implementation = "sdpa"
    encoder = WhisperVQEncoder(
        WhisperEncoder(whisper), config["pooling_kernel_size"], bottleneck_of(config), lambda d: quantizer_of(config, d)
    )
    decoder = WhisperTextDecoder(WhisperDecoder(whisper))
    state = load_file(Path(folder) / "model.safetensors")
    _load(encoder, ours(state), folder, may_lack={"quantizer.num_updates", "quantizer.pool", "quantizer.frames_seen"})
    decoder_state = {n.removeprefix("model.decoder."): v for n, v in state.items() if n.startswith("model.decoder.")}
    _load(decoder, decoder_state, folder, may_lack=set())
    return encoder, decoder


def _load(module: torch.nn.Module, state: dict[str, Tensor], folder: str | Path, may_lack: set[str]) -> None:
    missing, unexpected = module.load_state_dict(state, strict=False)
    missing = sorted(set(missing) - may_lack)
    if missing or unexpected:
        raise ValueError(f"the weights in {folder} do not fit: missing {missing}, unexpected {sorted(unexpected)}")
