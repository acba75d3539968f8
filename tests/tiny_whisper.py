"""A Whisper of a few thousand random parameters, as a Hugging Face folder, for tests."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

SPECIALS = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]


def make_tiny_whisper(folder: Path, width: int = 16, layers: int = 2, seed: int = 0) -> Path:
    """Write the folder and return it. Text ids: the specials, then one id a character."""
    letters = SPECIALS + list(" abcdefghijklmnopqrstuvwxyz'")
    vocab = {piece: i for i, piece in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIALS[0], bos_token=SPECIALS[1], pad_token=SPECIALS[0], unk_token=" "
    )
    fast.save_pretrained(folder)
    config = WhisperConfig(
        vocab_size=len(letters),
        num_mel_bins=80,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
        init_std=0.3,  # with the usual 0.02, positions drown the sound in so narrow a model
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=0, bos_token_id=0, pad_token_id=0, decoder_start_token_id=1, no_timestamps_token_id=2
    )
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return folder
