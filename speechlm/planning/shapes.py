"""Shapes of the models that configs start from, for machines that can not ask the hub."""

from typing import Any

from transformers import AutoConfig, GlmConfig, PreTrainedConfig, Qwen2Config, WhisperConfig

#: Published configurations, as far as they decide about memory and operations.
KNOWN: dict[str, PreTrainedConfig] = {
    "Qwen/Qwen2.5-1.5B": Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "zai-org/glm-4-9b-hf": GlmConfig(
        vocab_size=151_552,
        hidden_size=4096,
        intermediate_size=13_696,
        num_hidden_layers=40,
        num_attention_heads=32,
        num_key_value_heads=2,
        head_dim=128,
        tie_word_embeddings=False,
    ),
    "openai/whisper-large-v3": WhisperConfig(
        vocab_size=51_866,
        num_mel_bins=128,
        d_model=1280,
        encoder_layers=32,
        decoder_layers=32,
        encoder_attention_heads=20,
        decoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_ffn_dim=5120,
    ),
}


def shape_of(name: str) -> tuple[Any, str]:
    """A model's configuration, and where it is from.

    Args:
        name: of the hub, or a folder.

    Raises:
        ValueError: neither the hub, nor a folder, nor this file has it.
    """
    try:
        return AutoConfig.from_pretrained(name), "its own config.json"
    except (OSError, ValueError) as error:
        if name in KNOWN:
            return KNOWN[name], "the published shape, from speechlm/planning/shapes.py"
        raise ValueError(f"no config.json of {name}: neither a folder here nor on the hub can be read") from error
