"""Recognisers of a few thousand random parameters, as Hugging Face folders, for tests."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

SPECIALS = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|transcribe|>", "<|translate|>",
            "<|notimestamps|>", "<|nospeech|>"]  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make_multilingual_whisper(folder: Path, seed: int = 0) -> Path:
    """A Whisper that knows English and Chinese, and the token of silence."""
    vocab = {piece: i for i, piece in enumerate([*SPECIALS, " ", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIALS[0],
        pad_token=SPECIALS[0],
        unk_token=" ",
        additional_special_tokens=SPECIALS[1:],
    )
    fast.save_pretrained(folder)
    config = WhisperConfig(
        vocab_size=len(vocab), num_mel_bins=80, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_target_positions=32, pad_token_id=0,
        bos_token_id=0, eos_token_id=0, decoder_start_token_id=1, init_std=0.5,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=0, bos_token_id=0, pad_token_id=0, decoder_start_token_id=1, no_timestamps_token_id=6,
        is_multilingual=True, lang_to_id={"<|en|>": 2, "<|zh|>": 3}, task_to_id={"transcribe": 4, "translate": 5},
        max_length=24, suppress_tokens=[1, 2, 3, 4, 5, 6, 7],
    )  # fmt: skip
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return folder


def make_ctc(folder: Path, seed: int = 0) -> Path:
    """A Wav2Vec2 with a letter for each token."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {piece: i for i, piece in enumerate(["<pad>", "<unk>", "|", *LETTERS])}
    (folder / "letters.json").write_text(json.dumps(vocab))
    Wav2Vec2CTCTokenizer(str(folder / "letters.json"), bos_token=None, eos_token=None).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    config = Wav2Vec2Config(
        vocab_size=len(vocab), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(8, 8), conv_stride=(20, 16), conv_kernel=(20, 16), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, feat_extract_norm="layer", do_stable_layer_norm=True, initializer_range=1.0,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Wav2Vec2ForCTC(config)
    model.lm_head.bias.data[0] += 0.5  # of the blank, so that it occurs
    model.save_pretrained(folder)
    return folder
