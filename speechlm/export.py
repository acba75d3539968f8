"""A run's weights as a folder for others: `python -m speechlm.export --run runs/<name> --out <folder> [--format glm4voice]`.

`whisper`: a speech tokenizer trained without a quantiser (`quantizer: null` at 50 Hz), which is a plain Hugging Face Whisper,
to start other runs from. `glm4voice`: a speech tokenizer in the form of the released GLM-4-Voice tokenizer, for its code and ours.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

from speechlm.load import load_stage
from speechlm.nn.glm4voice_export import save_tokenizer
from speechlm.stages.speech_tokenizer import SpeechTokenizer


def export_whisper(stage: SpeechTokenizer, out: str | Path) -> None:
    """Write an unquantised tokenizer as the Whisper checkpoint it is, in float16, with tokenizer and feature extractor.

    Raises:
        ValueError: the stage has a quantiser, pools, or has moved its second position table, so that it is no plain Whisper.
    """
    encoder = stage.model.encoder
    if encoder.quantizer is not None or encoder.pooling != 1:
        raise ValueError("only a model without quantiser and pooling is a plain Whisper; this one has a bottleneck")
    if not torch.equal(encoder.embed_positions2.weight, encoder.embed_positions.weight):
        raise ValueError(
            "the second position table was trained and has no place in a plain Whisper; freeze it with "
            "`optimizer.lr_scale: {model.encoder.embed_positions2: 0}`"
        )
    whisper = WhisperForConditionalGeneration.from_pretrained(stage.whisper, dtype=torch.float32)
    state = {f"model.encoder.{n}": v for n, v in encoder.state_dict().items() if not n.startswith("embed_positions2")}
    state |= {f"model.decoder.{n}": v for n, v in stage.model.decoder.state_dict().items()}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    whisper.load_state_dict(state)
    whisper.half().save_pretrained(out)
    AutoTokenizer.from_pretrained(stage.whisper).save_pretrained(out)
    WhisperFeatureExtractor.from_pretrained(stage.whisper).save_pretrained(out)


def export_glm4voice(stage: SpeechTokenizer, out: str | Path) -> None:
    """Write a tokenizer as the released code reads it; see `save_tokenizer` for what it raises."""
    save_tokenizer(stage.model, stage.whisper, out)


FORMATS: dict[str, Callable[[SpeechTokenizer, str | Path], None]] = {
    "whisper": export_whisper,
    "glm4voice": export_glm4voice,
}


def main(args: Sequence[str] | None = None) -> None:
    """Parse, load, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--format", choices=FORMATS, default="whisper", help="what to write; whisper where not said")
    parser.add_argument("--checkpoint", help="another checkpoint than the run's newest")
    parsed = parser.parse_args(args)
    try:
        stage = load_stage(parsed.run, parsed.checkpoint)
        if not isinstance(stage, SpeechTokenizer):
            raise ValueError(f"trained a {type(stage).__name__}, which can not be exported as {parsed.format}")
        FORMATS[parsed.format](stage, parsed.out)
    except ValueError as error:
        parser.error(f"--run {parsed.run}: {error}")
    print(f"{parsed.run} -> {parsed.out}")


if __name__ == "__main__":
    main()
