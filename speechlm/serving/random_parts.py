"""A bundle of random weights, small enough for any machine: replies are noise, everything else is real."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from speechlm.load import build_stage
from speechlm.nn.hf_export import save_hf
from speechlm.serving.bundle import Manifest, write_bundle
from speechlm.serving.parts import store
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.vocab import Vocab

CODES = 64
MELS = 20
OUTPUT = {"sample_rate_hz": 22_050, "token_rate_hz": 12.5, "hop_samples": 256}


def write_random_bundle(
    out: str | Path, whisper: str | Path, manifest: Manifest | None = None, width: int = 64, seed: int = 0
) -> None:
    """Write a bundle.

    Args:
        out: must not exist, or be empty.
        whisper: folder of a Whisper checkpoint, whose encoder the tokenizer is and whose text tokenizer the model has.
        manifest: null is one of its own.
        width: of the language model.
        seed: of all weights.
    """
    torch.manual_seed(seed)
    clock = {"sample_rate_hz": 16_000, "token_rate_hz": 12.5}
    tokenizer = {
        "class_path": "speechlm.stages.speech_tokenizer.SpeechTokenizer",
        "init_args": {
            "whisper": str(whisper),
            "floor": "running",
            "quantizer": {
                "class_path": "speechlm.nn.ema_vq.EmaVQ",
                "init_args": {"num_codes": CODES, "init": "random"},
            },
            "bottleneck": {"block_sec": 0.64},
        },
    }
    decoder = {"class_path": "speechlm.stages.flow_decoder.FlowDecoder", "init_args": _decoder()}
    generator = {
        "class_path": "speechlm.nn.hift.HiFT",
        "init_args": {"num_mels": MELS, "channels": 16, "f0_channels": 8},
    }
    vocoder = {
        "class_path": "speechlm.stages.vocoder.Vocoder",
        "init_args": {"generator": generator, "discriminator": _judges()},
    }
    write_bundle(
        out,
        manifest or Manifest("random", max_length=1024),
        {
            "lm": lambda folder: _write_lm(folder, whisper, width),
            "tokenizer": lambda folder: _write_stage(folder, clock, tokenizer),
            "decoder": lambda folder: _write_stage(folder, OUTPUT, decoder),
            "vocoder": lambda folder: _write_stage(folder, OUTPUT, vocoder),
        },
    )


def _write_lm(folder: Path, whisper: str | Path, width: int) -> None:
    text = TextTokenizer(whisper)
    vocab = Vocab(text.size, CODES, text_tokenizer=text.fingerprint)
    config = Qwen2Config(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        initializer_range=0.2,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    save_hf(Qwen2ForCausalLM(config), vocab, str(whisper), folder, torch.float32)


def _write_stage(folder: Path, clock: dict[str, Any], model: dict[str, Any]) -> None:
    config = {"clock": clock, "model": model}
    stage = build_stage(config)
    _fill(stage)
    store(stage, config, folder)


def _fill(stage: L.LightningModule) -> None:
    """Numbers where training begins with zeros, and a codebook that is ready."""
    for name, parameter in stage.named_parameters():
        if "modulation" in name or "outward" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    quantizer = getattr(getattr(getattr(stage, "model", None), "encoder", None), "quantizer", None)
    if quantizer is not None:
        quantizer.skip_start()


def _decoder() -> dict[str, Any]:
    network = {
        "num_tokens": CODES,
        "num_mels": MELS,
        "mel_mean": -6.0,
        "mel_std": 2.7,
        "encoder": {
            "class_path": "speechlm.nn.token_encoder.TokenEncoder",
            "init_args": {"width": 32, "heads": 2, "ffn": 64, "layers": 2, "left_blocks": 2},
        },
        "length_regulator": {
            "class_path": "speechlm.nn.length_regulator.ClockedTokens",
            "init_args": {"channels": MELS},
        },
        "estimator": {
            "class_path": "speechlm.nn.dit.DiT",
            "init_args": {"num_mels": MELS, "width": 32, "layers": 2, "heads": 2, "ffn": 64, "left_blocks": 2},
        },
    }
    return {
        "network": {"class_path": "speechlm.nn.token_to_mel.TokenToMel", "init_args": network},
        "sampling": {"steps": 4},
        "ema_decay": None,
    }


def _judges() -> dict[str, Any]:
    sizes = {"periods": [2], "resolutions": [[256, 60, 240]], "period_channels": [4], "spectrum_channels": 4}
    return {"class_path": "speechlm.nn.discriminators.Jury", "init_args": sizes}
