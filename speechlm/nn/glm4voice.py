"""A GLM-4-Voice tokenizer folder, read: its configuration, and its weights under our names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.quantizer import Quantizer
from speechlm.nn.whisper_decoder import WhisperTextDecoder
from speechlm.nn.whisper_encoder import POSITIONS_PER_SEC, Bottleneck, WhisperVQEncoder

#: Released name of each buffer of our quantiser, under `model.encoder.`.
_CODEBOOK = {"codebook": "codebook.weight", "ema_count": "ema_count", "ema_weight": "ema_weight"}
#: Buffers of our quantiser that the released one does not keep.
_OURS_ALONE = {"quantizer.num_updates", "quantizer.pool", "quantizer.frames_seen"}


def is_released(folder: str | Path) -> bool:
    """Whether a name stands for a folder in the released form, rather than a plain Whisper."""
    path = Path(folder) / "config.json"
    return path.is_file() and "quantize_vocab_size" in json.loads(path.read_text(encoding="utf-8"))


def read_config(folder: str | Path) -> dict[str, Any]:
    """The `config.json` of a released tokenizer folder.

    Raises:
        ValueError: the folder holds some other model, or a form of this one that has no counterpart here.
    """
    config: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    if "quantize_vocab_size" not in config:
        raise ValueError(f"{folder} is not a GLM-4-Voice tokenizer: its config.json has no quantize_vocab_size")
    if config["pooling_position"] != config["quantize_position"] or config["pooling_type"] != "avg":
        raise ValueError(
            f"{folder} pools ({config['pooling_type']}) after layer {config['pooling_position']} and quantises after layer "
            f"{config['quantize_position']}; only average pooling right before the quantiser can be loaded"
        )
    return config


def bottleneck_of(config: dict[str, Any]) -> Bottleneck:
    """Our settings for a released configuration."""
    block = config["quantize_causal_block_size"]
    return Bottleneck(
        after_layer=config["quantize_position"],
        block_sec=block / POSITIONS_PER_SEC if block else None,
        causal_convs=config["encoder_causal_convolution"],
        second_positions="first",
        padded_end="masked",
    )


def quantizer_of(config: dict[str, Any], dim: int) -> EmaVQ:
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
    """Encoder and decoder of a released tokenizer folder, with the settings it was trained with.

    Raises:
        ValueError: a tensor is missing or does not fit.
    """
    config = read_config(folder)
    return load_parts(folder, config["pooling_kernel_size"], bottleneck_of(config), lambda d: quantizer_of(config, d))


def load_parts(
    folder: str | Path, pooling: int, bottleneck: Bottleneck, quantizer: Callable[[int], Quantizer] | None
) -> tuple[WhisperVQEncoder, WhisperTextDecoder]:
    """Released weights in parts of given settings (safetensors; nothing in the folder can execute).

    Args:
        folder: in the released form.
        pooling: encoder positions averaged into one token.
        bottleneck: where and how; what the folder was not trained with is refused.
        quantizer: makes the quantiser; its updates are its own affair, its codebook is the released one.

    Raises:
        ValueError: the settings are not the folder's, or a tensor is missing or does not fit.
    """
    config = read_config(folder)
    whisper = WhisperConfig.from_dict(config)
    whisper._attn_implementation = "sdpa"
    encoder = WhisperVQEncoder(WhisperEncoder(whisper), pooling, bottleneck, quantizer)
    _refuse_other_settings(folder, config, encoder)
    decoder = WhisperTextDecoder(WhisperDecoder(whisper))
    state = read_weights(folder)
    _load(encoder, ours(state), folder, may_lack=_OURS_ALONE)
    decoder_state = {n.removeprefix("model.decoder."): v for n, v in state.items() if n.startswith("model.decoder.")}
    _load(decoder, decoder_state, folder, may_lack=set())
    if isinstance(encoder.quantizer, EmaVQ):
        encoder.quantizer.skip_start()
    return encoder, decoder


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """All tensors of a folder, whole or in shards, as float32.

    Raises:
        ValueError: there are none.
    """
    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no model.safetensors nor shards of it")
    return {name: tensor.float() for file in files for name, tensor in load_file(file).items()}


def _refuse_other_settings(folder: str | Path, config: dict[str, Any], encoder: WhisperVQEncoder) -> None:
    """A setting that changes what the weights compute must be the one they were trained with."""
    released = bottleneck_of(config)
    block = encoder.bottleneck.block_sec
    rows = {
        "clock.token_rate_hz": (POSITIONS_PER_SEC / encoder.pooling, POSITIONS_PER_SEC / config["pooling_kernel_size"]),
        "bottleneck.after_layer": (encoder.after_layer, released.after_layer),
        "bottleneck.pool_after": (encoder.pool_after, released.after_layer),
        "bottleneck.block_sec": (block, released.block_sec),
        "bottleneck.causal_convs": (encoder.bottleneck.causal_convs, released.causal_convs),
        "bottleneck.second_positions": (encoder.bottleneck.second_positions, released.second_positions),
        "bottleneck.padded_end": (encoder.bottleneck.padded_end, released.padded_end),
        "quantizer.num_codes": (encoder.quantizer and encoder.quantizer.num_codes, config["quantize_vocab_size"]),
    }
    lines = [
        f"\n  {name}: {ours!r}, in the folder {theirs!r}" for name, (ours, theirs) in rows.items() if ours != theirs
    ]
    if lines:
        raise ValueError(f"{folder} is a trained tokenizer, and the config differs from it:{''.join(lines)}")


def _load(module: torch.nn.Module, state: dict[str, Tensor], folder: str | Path, may_lack: set[str]) -> None:
    missing, unexpected = module.load_state_dict(state, strict=False)
    missing = sorted(set(missing) - may_lack)
    if missing or unexpected:
        raise ValueError(f"the weights in {folder} do not fit: missing {missing}, unexpected {sorted(unexpected)}")
