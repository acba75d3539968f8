"""The released GLM-4-Voice language model (glm-4-voice-9b): its ids, names and configuration, to and from transformers' Glm.

The released folder needs its own code to run; transformers' `GlmForCausalLM` computes the same. Source of the ids: the released
tokenizer configuration and model_server.py; of the correspondence: arXiv 2406.12793 and the two implementations.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GlmConfig, PreTrainedModel

from speechlm.files import write_text_atomic
from speechlm.nn.hf_export import cast_weights, extended_tokenizer, generation_config, whole_folder
from speechlm.tokens.vocab import Vocab

NUM_TEXT = 151_343  # the text tokenizer of GLM-4 with its own specials
AUDIO_0 = 152_353  # id of `<|audio_0|>`
NUM_SPEECH = 16_384
CONTROLS = (
    "<|begin_of_audio|>",
    "<|end_of_audio|>",
    "<|begin_of_transcription|>",
    "<|end_of_transcription|>",
    *(f"<|reserved_{i}|>" for i in range(NUM_TEXT + 4, AUDIO_0)),
)
ROPE_THETA = 10_000.0
_LAYER = {
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
}
_TOP = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
_QKV = "self_attention.query_key_value."
#: What the released code can do and transformers' Glm can not.
_EXPECTED = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "tie_word_embeddings": False,
}


def released_vocab(text_tokenizer: str = "", speech_tokenizer: str = "") -> Vocab:
    """The ids of the released model. All 16384 codes have one; the released tokenizer's strings end at `<|audio_16382|>`."""
    vocab = Vocab(NUM_TEXT, NUM_SPEECH, CONTROLS, text_tokenizer, speech_tokenizer)
    assert vocab.speech_offset == AUDIO_0
    return vocab


def read_config(folder: str | Path) -> GlmConfig:
    """The configuration of a released folder, for transformers.

    Raises:
        ValueError: the folder holds some other model.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json")
    theirs = json.loads(path.read_text(encoding="utf-8"))
    if "padded_vocab_size" not in theirs:
        raise ValueError(f"{folder} is not in the form of glm-4-voice-9b: its config.json has no padded_vocab_size")
    for name, value in _EXPECTED.items():
        if theirs.get(name, value) != value:
            raise ValueError(f"{path} has {name} {theirs[name]}, only {value} can be loaded")
    heads = theirs["num_attention_heads"]
    return GlmConfig(
        vocab_size=theirs["padded_vocab_size"],
        hidden_size=theirs["hidden_size"],
        intermediate_size=theirs["ffn_hidden_size"],
        num_hidden_layers=theirs["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=theirs["multi_query_group_num"] if theirs["multi_query_attention"] else heads,
        head_dim=theirs["kv_channels"],
        attention_bias=theirs["add_qkv_bias"],
        attention_dropout=theirs["attention_dropout"],
        max_position_embeddings=theirs["seq_length"],
        rms_norm_eps=theirs["layernorm_epsilon"],
        rope_parameters={
            "rope_type": "default",
            "rope_theta": ROPE_THETA * theirs.get("rope_ratio", 1),
            "partial_rotary_factor": 0.5,
        },
        tie_word_embeddings=False,
        eos_token_id=theirs.get("eos_token_id"),
        pad_token_id=theirs.get("pad_token_id"),
        bos_token_id=None,
        architectures=["GlmForCausalLM"],
    )


def released_config(config: GlmConfig) -> dict[str, Any]:
    """`read_config` backwards, under the names of the released code."""
    return {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "padded_vocab_size": config.vocab_size,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "multi_query_attention": config.num_key_value_heads != config.num_attention_heads,
        "multi_query_group_num": config.num_key_value_heads,
        "kv_channels": config.head_dim,
        "add_qkv_bias": config.attention_bias,
        "attention_dropout": config.attention_dropout,
        "hidden_dropout": 0.0,
        "seq_length": config.max_position_embeddings,
        "layernorm_epsilon": config.rms_norm_eps,
        "rope_ratio": config.rope_parameters["rope_theta"] / ROPE_THETA,
        "original_rope": True,
        "use_cache": True,
        **_EXPECTED,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": str(config.dtype).removeprefix("torch."),
    }


def ours(state: dict[str, Tensor], config: GlmConfig) -> dict[str, Tensor]:
    """Released tensors under transformers' names; queries, keys and values apart.

    Raises:
        ValueError: a tensor is none of the model's.
    """
    query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, inner = _split(name)
        if name in _TOP:
            mapped[_TOP[name]] = tensor
        elif inner in _LAYER:
            mapped[f"model.layers.{layer}.{_LAYER[inner]}"] = tensor
        elif inner.startswith(_QKV):
            for part, rows in zip("qkv", tensor.split([query, key, key]), strict=True):
                mapped[f"model.layers.{layer}.self_attn.{part}_proj.{inner.removeprefix(_QKV)}"] = rows.contiguous()
        elif not name.endswith("rotary_pos_emb.inv_freq"):
            raise ValueError(f"{name} is no tensor of glm-4-voice-9b")
    return mapped


def theirs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`ours` backwards."""
    top = {mine: released for released, mine in _TOP.items()}
    inner = {mine: released for released, mine in _LAYER.items()}
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in top:
            mapped[top[name]] = tensor
            continue
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        prefix = f"transformer.encoder.layers.{layer}."
        if rest in inner:
            mapped[prefix + inner[rest]] = tensor
        elif rest.startswith("self_attn.q_proj."):
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            mapped[prefix + _QKV + rest.removeprefix("self_attn.q_proj.")] = torch.cat(parts)
    return mapped


def convert_released(folder: str | Path, out: str | Path) -> None:
    """Write a released folder as one of transformers', file by file, with `vocab.json`.

    Training starts from it with `lm: OUT`, `vocab: OUT/vocab.json` and `new_rows: {form: keep}`; the text tokenizer is that of
    GLM-4-9B in transformers' form (zai-org/glm-4-9b-hf), which has the same ids.

    Raises:
        ValueError: the folder holds some other model, or lacks a tensor.
    """
    config = read_config(folder)
    vocab = released_vocab()
    if config.vocab_size < len(vocab):
        raise ValueError(f"{folder} has {config.vocab_size} embeddings, its vocabulary {len(vocab)} ids")
    files = sorted(Path(folder).glob("*.safetensors"))
    with whole_folder(out) as part:
        places: dict[str, str] = {}
        for file in files:
            mapped = ours(load_file(file), config)
            places |= dict.fromkeys(mapped, file.name)
            config.dtype = next(iter(mapped.values())).dtype
            save_file(mapped, part / file.name, metadata={"format": "pt"})
        missing = sorted(set(_names(config)) - set(places))
        if missing:
            raise ValueError(f"the weights in {folder} lack {missing[:10]}")
        index = {"metadata": {}, "weight_map": places}
        if len(files) > 1:
            write_text_atomic(part / "model.safetensors.index.json", json.dumps(index, indent=1, sort_keys=True))
        elif files[0].name != "model.safetensors":
            (part / files[0].name).rename(part / "model.safetensors")
        config.save_pretrained(part)
        vocab.save(part / "vocab.json")


def save_released(lm: PreTrainedModel, vocab: Vocab, text_tokenizer: str, out: str | Path, dtype: torch.dtype) -> None:
    """Write weights and configuration as the released code and SGLang read them, and a tokenizer with a name for every id.

    Raises:
        ValueError: the model is no Glm, or its ids are not the released ones.
    """
    if not isinstance(lm.config, GlmConfig):
        raise ValueError(f"only a Glm has the form of glm-4-voice-9b, this is a {type(lm).__name__}")
    if (vocab.speech_offset, vocab.num_speech, vocab.controls) != (AUDIO_0, NUM_SPEECH, CONTROLS):
        raise ValueError(
            f"the vocabulary is not that of glm-4-voice-9b: {vocab.num_speech} codes from {vocab.speech_offset}"
        )
    tokenizer = extended_tokenizer(text_tokenizer, vocab)
    with whole_folder(out) as folder:
        cast_weights(lm, dtype)
        save_torch_state_dict(theirs(lm.state_dict()), folder)
        write_text_atomic(folder / "config.json", json.dumps(released_config(lm.config), indent=2) + "\n")
        generation_config(tokenizer, vocab).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        vocab.save(folder / "vocab.json")


def _split(name: str) -> tuple[str, str]:
    """Layer and what is in it, of a released name; two empty strings where it is in none."""
    prefix = "transformer.encoder.layers."
    if not name.startswith(prefix):
        return "", ""
    layer, _, inner = name.removeprefix(prefix).partition(".")
    return layer, inner


def _names(config: GlmConfig) -> Iterator[str]:
    """Every tensor that transformers' model has."""
    yield from _TOP.values()
    for layer in range(config.num_hidden_layers):
        for name in _LAYER.values():
            yield f"model.layers.{layer}.{name}"
        for part in "qkv":
            for kind in ("weight", "bias") if config.attention_bias else ("weight",):
                yield f"model.layers.{layer}.self_attn.{part}_proj.{kind}"
