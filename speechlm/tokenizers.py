"""Our own tokenizers for use in bulk, by where their weights are.

`speechlm.nn.mimi.MimiTokens` is another at the same interface, `speechlm.tokens.tokenizer.Tokenizer`.
"""

from jsonargparse import ArgumentParser, Namespace

from speechlm.load import load_stage
from speechlm.nn import glm4voice
from speechlm.nn.log_mel import LogMel
from speechlm.nn.whisper_encoder import POSITIONS_PER_SEC
from speechlm.nn.whisper_tokens import WhisperTokens
from speechlm.stages.speech_tokenizer import SpeechTokenizer
from speechlm.tokens.clock import Clock
from speechlm.tokens.tokenizer import Tokenizer


class RunTokens(WhisperTokens):
    """The tokenizer of a run of ours.

    Args:
        run: run folder, `runs/<name>`.
        checkpoint: another checkpoint of the same shape than the run's newest.

    Raises:
        ValueError: the run trained something else, or without a quantiser, or has no codebook or no checkpoint yet.
    """

    def __init__(self, run: str, checkpoint: str | None = None) -> None:
        stage = load_stage(run, checkpoint)
        if not isinstance(stage, SpeechTokenizer):
            raise ValueError(f"{run} trained a {type(stage).__name__}, which is no speech tokenizer")
        try:
            super().__init__(stage.model.log_mel, stage.model.encoder, stage.clock)
        except ValueError as error:
            raise ValueError(f"{run}: {error}") from None


class Glm4VoiceTokens(WhisperTokens):
    """The released GLM-4-Voice tokenizer, or one exported in its form.

    Args:
        folder: with `config.json` and `model.safetensors`.

    Raises:
        ValueError: the folder holds some other model.
    """

    def __init__(self, folder: str) -> None:
        config = glm4voice.read_config(folder)
        encoder, _ = glm4voice.load_tokenizer(folder)
        clock = Clock(token_rate_hz=POSITIONS_PER_SEC / config["pooling_kernel_size"])
        super().__init__(LogMel(config["num_mel_bins"], clock.samples_per_token), encoder, clock)


def build_tokenizer(parser: ArgumentParser, config: Namespace) -> Tokenizer:
    """The object that the section `tokenizer` of a parsed configuration names."""
    return parser.instantiate(Namespace(tokenizer=config.tokenizer)).tokenizer
