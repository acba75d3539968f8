"""A trained tokenizer as a folder that the released GLM-4-Voice code reads: its names, shapes, dtypes and configuration."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.utils import cached_file

from speechlm.files import write_bytes_atomic, write_text_atomic
from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.glm4voice import is_released, read_config, theirs
from speechlm.nn.whisper_vq import WhisperVQ

#: Keys of a released config.json that are a Whisper's own.
WHISPER_KEYS = (
    "activation_dropout", "activation_function", "apply_spec_augment", "attention_dropout", "begin_suppress_tokens",
    "bos_token_id", "classifier_proj_size", "d_model", "decoder_attention_heads", "decoder_ffn_dim", "decoder_layerdrop",
    "decoder_layers", "decoder_start_token_id", "dropout", "encoder_attention_heads", "encoder_ffn_dim", "encoder_layerdrop",
    "encoder_layers", "eos_token_id", "init_std", "is_encoder_decoder", "mask_feature_length", "mask_feature_min_masks",
    "mask_feature_prob", "mask_time_length", "mask_time_min_masks", "mask_time_prob", "max_source_positions",
    "max_target_positions", "median_filter_width", "model_type", "num_hidden_layers", "num_mel_bins", "pad_token_id",
    "scale_embedding", "transformers_version", "use_cache", "use_weighted_layer_sum", "vocab_size",
)  # fmt: skip
#: What a Whisper has beside its weights, copied as it is: newer libraries write some of it in forms that old ones can not read.
SIDE_FILES = (
    "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    "added_tokens.json", "special_tokens_map.json", "normalizer.json",
)  # fmt: skip
LOSS_SCALE = 10.0  # as released; the commitment coefficient makes up the rest


def save_tokenizer(model: WhisperVQ, whisper: str, out: str | Path) -> None:
    """Write `config.json`, `model.safetensors`, and what the starting Whisper has beside its weights.

    Args:
        model: with a quantiser that has its codebook.
        whisper: what it started from.
        out: folder; made where it is absent.

    Raises:
        ValueError: the released code would compute something else from these weights; all reasons are named.
    """
    reasons = why_not(model)
    if reasons:
        raise ValueError("the released code can not compute what this model computes: " + "; ".join(reasons))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    config = config_of(model, whisper)
    _copy_side_files(model, whisper, out)
    write_bytes_atomic(out / "model.safetensors", save(state_of(model, config["torch_dtype"]), {"format": "pt"}))
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    write_text_atomic(out / "config.json", text + "\n")  # last: without it the folder is not taken for a tokenizer


def why_not(model: WhisperVQ) -> list[str]:
    """Reasons, none of them if the released code computes the same tokens."""
    encoder = model.encoder
    quantizer = encoder.quantizer
    reasons = []
    if not isinstance(quantizer, EmaVQ):
        name = "no quantizer" if quantizer is None else f"a {type(quantizer).__name__}"
        reasons.append(f"it has {name}, the released form an EMA codebook (EmaVQ or ReleasedVQ)")
    elif not quantizer.ready:
        reasons.append("its codebook has not been made yet; train past `init_updates`")
    if encoder.bottleneck.second_positions != "first":
        reasons.append("it was trained with `bottleneck.second_positions: moved`, the released form is `first`")
    if encoder.pool_after != encoder.after_layer:
        reasons.append(f"it pools after layer {encoder.pool_after}, before the quantizer after {encoder.after_layer}")
    if encoder.bottleneck.padded_end != "masked":
        reasons.append("it was trained with `bottleneck.padded_end: heard`, the released form is `masked`")
    if model.log_mel.floor != "clip":
        reasons.append(f"it was trained with `floor: {model.log_mel.floor}`, the released features are `clip`")
    return reasons


def config_of(model: WhisperVQ, whisper: str) -> dict[str, Any]:
    """The released `config.json` of a model, every value plain."""
    config = read_config(whisper) if is_released(whisper) else _fresh_config(whisper)
    quantizer = model.encoder.quantizer
    assert isinstance(quantizer, EmaVQ)
    return config | {
        "architectures": ["WhisperVQForConditionalGeneration"],
        "skip_language_detection": model.text.bare,
        "pooling_kernel_size": model.encoder.pooling,
        "pooling_position": model.encoder.pool_after,
        "pooling_type": "avg",
        "encoder_causal_attention": False,
        "encoder_causal_convolution": model.encoder.bottleneck.causal_convs,
        "quantize_causal_block_size": model.encoder.block_positions,
        "quantize_causal_encoder": False,
        "quantize_commit_coefficient": quantizer.commitment / config["quantize_loss_scale"],
        "quantize_ema_decay": quantizer.decay,
        "quantize_encoder_only": False,
        "quantize_position": model.encoder.after_layer,
        "quantize_restart_interval": quantizer.restart_every or None,
        "quantize_vocab_size": quantizer.num_codes,
    }


def state_of(model: WhisperVQ, dtype: str) -> dict[str, Tensor]:
    """Tensors under released names, in the folder's dtype; the averages of the codebook stay float32."""
    state = theirs(model.encoder.state_dict())
    state |= {f"model.decoder.{name}": value for name, value in model.decoder.state_dict().items()}
    target = getattr(torch, dtype)
    kept = ("ema_count", "ema_weight")
    cast = {name: value if name.endswith(kept) else value.to(target) for name, value in state.items()}
    return {name: value.detach().cpu().contiguous() for name, value in cast.items()}


def _fresh_config(whisper: str) -> dict[str, Any]:
    own = WhisperConfig.from_pretrained(whisper)
    plain = {"transformers_version": own.to_dict()["transformers_version"]}
    return {name: getattr(own, name, plain.get(name)) for name in WHISPER_KEYS} | {
        "torch_dtype": "float32",
        "quantize_loss_scale": LOSS_SCALE,
    }


def _copy_side_files(model: WhisperVQ, whisper: str, out: Path) -> None:
    for name in SIDE_FILES:
        path = cached_file(whisper, name, _raise_exceptions_for_missing_entries=False)
        if path is not None and Path(path).resolve() != (out / name).resolve():
            shutil.copyfile(path, out / name)
    if not (out / "preprocessor_config.json").exists():
        WhisperFeatureExtractor(feature_size=model.log_mel.filters.shape[1]).save_pretrained(out)
