"""A run's weights as a Hugging Face folder: `python -m speechlm.export --run runs/<name> --out <folder>`.

So far: a speech tokenizer trained without a quantiser (`quantizer: null` at 50 Hz), which is a plain Whisper and becomes one, to
start other runs from.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

from speechlm.load import load_stage
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


def main() -> None:
    """Parse, load, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--out", required=True, help="folder to write")
    args = parser.parse_args()
    stage = load_stage(args.run)
    if not isinstance(stage, SpeechTokenizer):
        parser.error(f"--run {args.run} trained a {type(stage).__name__}, which can not be exported yet")
    try:
        export_whisper(stage, args.out)
    except ValueError as error:
        parser.error(f"--run {args.run}: {error}")
    print(f"{args.run} -> {args.out}")


if __name__ == "__main__":
    main()
