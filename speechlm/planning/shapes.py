"""Shapes of the models that configs start from, so that a plan asks no hub for them."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, GlmConfig, LlamaConfig, PreTrainedConfig, Qwen2Config, WhisperConfig


def whisper(width: int, layers: int, vocab_size: int, num_mel_bins: int = 80) -> WhisperConfig:
    """A published Whisper's; its heads have 64 numbers."""
    return WhisperConfig(
        vocab_size=vocab_size,
        num_mel_bins=num_mel_bins,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=width // 64,
        decoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
    )


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
    "HuggingFaceTB/SmolLM2-135M": LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "openai/whisper-large-v3": whisper(1280, 32, 51_866, 128),
    "openai/whisper-medium": whisper(1024, 24, 51_865),
    "openai/whisper-small": whisper(768, 12, 51_865),
    "openai/whisper-base": whisper(512, 6, 51_865),
    "openai/whisper-tiny.en": whisper(384, 4, 51_864),
}
#: What lies in folders that the runs of other configs fill, where they are not there yet.
EXPECTED = {
    "models/speech_lm": "zai-org/glm-4-9b-hf",
    "models/glm-4-voice-9b-hf": "zai-org/glm-4-9b-hf",
    "models/glm-4-voice-tokenizer": "openai/whisper-large-v3",
    "models/whisper-tiny.en-unpadded": "openai/whisper-tiny.en",
    "runs/mini/models/speech_lm": "HuggingFaceTB/SmolLM2-135M",
}


def shape_of(name: str) -> tuple[Any, str]:
    """A model's configuration, and where it is from: a folder's own first, then what is known here, then the hub's.

    Args:
        name: of the hub, or a folder.

    Raises:
        ValueError: neither a folder, nor this file, nor the hub has it.
    """
    expected = EXPECTED.get(name, name)
    if expected in KNOWN and not Path(name).is_dir():
        where = f"{name} is not there yet: {expected}" if expected != name else f"the published one of {name}"
        return KNOWN[expected], where
    try:
        return AutoConfig.from_pretrained(name), "its own config.json"
    except (OSError, ValueError) as error:
        raise ValueError(f"no config.json of {name}: neither a folder here nor on the hub can be read") from error
