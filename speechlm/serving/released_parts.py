"""Released weights as parts of a bundle: the configs that build them, so that they are stored like the parts of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechlm.nn import glm4voice
from speechlm.nn.whisper_encoder import POSITIONS_PER_SEC
from speechlm.resynthesis import FLOW, HIFT

SOUND = {"sample_rate_hz": 22_050, "token_rate_hz": 12.5, "hop_samples": 256}  # of the released decoder and vocoder


def released_config(part: str, path: Path) -> dict[str, Any] | None:
    """Sections `clock` and `model` for what lies at `path`; None where it is not in a released form.

    Args:
        part: `tokenizer`, `decoder` or `vocoder`.
        path: folder of the released tokenizer; folder with `flow.pt` and `hift.pt`; for a vocoder also the file itself.

    Raises:
        ValueError: it is a tokenizer of a form that has no counterpart here.
    """
    finders: dict[str, Callable[[Path], dict[str, Any] | None]] = {
        "tokenizer": _tokenizer,
        "decoder": _decoder,
        "vocoder": _vocoder,
    }
    return finders[part](path)


def _tokenizer(folder: Path) -> dict[str, Any] | None:
    if not glm4voice.is_released(folder):
        return None
    config = glm4voice.read_config(folder)
    bottleneck = glm4voice.bottleneck_of(config)
    arguments = {
        "whisper": str(folder),
        "bare_prompt": config["skip_language_detection"],
        "quantizer": {
            "class_path": "speechlm.nn.ema_vq.EmaVQ",
            "init_args": {"num_codes": config["quantize_vocab_size"], "init": "random"},
        },
        "bottleneck": {
            "after_layer": bottleneck.after_layer,
            "block_sec": bottleneck.block_sec,
            "causal_convs": bottleneck.causal_convs,
            "second_positions": bottleneck.second_positions,
            "padded_end": bottleneck.padded_end,
        },
    }
    clock = {"sample_rate_hz": 16_000, "token_rate_hz": POSITIONS_PER_SEC / config["pooling_kernel_size"]}
    return _stage("speech_tokenizer.SpeechTokenizer", clock, arguments)


def _decoder(folder: Path) -> dict[str, Any] | None:
    if not (folder / FLOW).is_file():
        return None
    network = {"class_path": "speechlm.nn.flow_released.ReleasedFlow", "init_args": {"path": str(folder / FLOW)}}
    return _stage("flow_decoder.FlowDecoder", SOUND, {"network": network, "ema_decay": None})


def _vocoder(path: Path) -> dict[str, Any] | None:
    file = path / HIFT if path.is_dir() else path
    if not file.is_file():
        return None
    generator = {"class_path": "speechlm.nn.hift_released.read_hift", "init_args": {"path": str(file)}}
    return _stage("vocoder.Vocoder", SOUND, {"generator": generator})


def _stage(name: str, clock: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return {"clock": dict(clock), "model": {"class_path": f"speechlm.stages.{name}", "init_args": arguments}}
