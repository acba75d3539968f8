"""A folder in the form of the released GLM-4-Voice tokenizer, as the stage that would go on training it."""

from pathlib import Path

from speechlm.nn import glm4voice
from speechlm.nn.whisper_encoder import POSITIONS_PER_SEC
from speechlm.stages.speech_tokenizer import SpeechTokenizer
from speechlm.tokens.clock import Clock


def released_stage(folder: str | Path) -> SpeechTokenizer:
    """The tokenizer with its own settings, in eval mode.

    Args:
        folder: `config.json`, `model.safetensors` and Whisper's text tokenizer.

    Raises:
        ValueError: the folder holds something else.
    """
    config = glm4voice.read_config(folder)
    return SpeechTokenizer(
        Clock(token_rate_hz=POSITIONS_PER_SEC / config["pooling_kernel_size"]),
        str(folder),
        quantizer=lambda dim: glm4voice.quantizer_of(config, dim),
        bottleneck=glm4voice.bottleneck_of(config),
        bare_prompt=config["skip_language_detection"],
    ).eval()
