"""A run's weights as a folder for others: `python -m speechlm.export --run runs/<name> --out <folder> [--format glm4voice]`.

Of a language model: `hf`, a Hugging Face folder with tokenizer, chat template and vocabulary; `glm4voice`, weights in the form of
the released glm-4-voice-9b. Of a speech tokenizer: `whisper`, if it was trained without a quantiser (`quantizer: null` at 50 Hz)
and so is a plain Whisper, to start other runs from; `glm4voice`, the form of the released tokenizer, for its code and ours;
`codebook`, the vectors of its codes, for a flow decoder to start from.
Of a flow decoder (its average, where it keeps one) and of a vocoder: `glm4voice`, the released `flow.pt` and `hift.pt`.
The other way, `--released <folder>` makes a Hugging Face folder of the released glm-4-voice-9b, to train on from.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

from speechlm.export_account import account_of
from speechlm.files import write_bytes_atomic
from speechlm.hidden_secrets import hide_secrets
from speechlm.load import load_stage
from speechlm.model_card import write_model_card
from speechlm.nn.flow_released import write_flow
from speechlm.nn.glm4voice import is_released
from speechlm.nn.glm4voice_export import save_tokenizer
from speechlm.nn.glm4voice_lm import convert_released, save_released
from speechlm.nn.hf_export import save_hf, verify
from speechlm.nn.hift import HiFT
from speechlm.nn.hift_released import write_hift
from speechlm.nn.lora import merge_lora
from speechlm.nn.token_start import CODEBOOK
from speechlm.released import released_stage
from speechlm.stages.flow_decoder import FlowDecoder
from speechlm.stages.speech_lm import SpeechLM
from speechlm.stages.speech_tokenizer import SpeechTokenizer
from speechlm.stages.vocoder import Vocoder
from speechlm.text_tokenizer import TextTokenizer

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


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


def export_codebook(stage: SpeechTokenizer, out: str | Path) -> None:
    """Write the vectors of a tokenizer's codes, which a decoder's embedding can start from, as `codebook.safetensors`.

    Raises:
        ValueError: training has not made a codebook yet.
    """
    quantizer = stage.model.encoder.quantizer
    if quantizer is None or not quantizer.ready:
        raise ValueError("the tokenizer has no codebook yet: its run ended before one was made from data")
    with torch.no_grad():
        vectors = quantizer.decode(torch.arange(quantizer.num_codes)).float().contiguous()
    Path(out).mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(Path(out) / "codebook.safetensors", save({CODEBOOK: vectors}))
    print(f"vectors of {len(vectors)} codes, {vectors.shape[1]} numbers each")


def export_vocoder(stage: Vocoder, out: str | Path) -> None:
    """Write a vocoder's network as the released `hift.pt`.

    Raises:
        ValueError: it is no HiFT.
    """
    if not isinstance(stage.generator, HiFT):
        raise ValueError(f"the released vocoder is a HiFT, this one is a {type(stage.generator).__name__}")
    write_hift(stage.generator, Path(out) / "hift.pt")


def export_lm(stage: SpeechLM, out: str | Path, settings: argparse.Namespace) -> None:
    """Write a language model as a Hugging Face folder, and say how far its logits are from those of the run.

    Raises:
        ValueError: the text tokenizer is not the vocabulary's, there is no average, or there is something at `out`.
    """
    name = text_tokenizer_of(stage, settings)
    lm = plain_lm(stage, settings.ema)
    save_hf(lm, stage.vocab, name, out, DTYPES[settings.dtype])
    if settings.verify:
        verified = verify(out, lm, stage.vocab)
        print(f"largest difference of {verified.positions} positions' logits: {verified.logit_difference:g}")


def export_released_lm(stage: SpeechLM, out: str | Path, settings: argparse.Namespace) -> None:
    """Write a language model as the released glm-4-voice-9b is; see `save_released` for what it raises."""
    name = text_tokenizer_of(stage, settings)
    save_released(plain_lm(stage, settings.ema), stage.vocab, name, out, DTYPES[settings.dtype])


def text_tokenizer_of(stage: SpeechLM, settings: argparse.Namespace) -> str:
    """Name or folder of the text tokenizer of a run's vocabulary.

    Raises:
        ValueError: what is named is another.
    """
    known, name = stage.vocab.text_tokenizer, settings.text_tokenizer or stage.text_tokenizer
    if known and (given := TextTokenizer(name).fingerprint) != known:
        raise ValueError(
            f"the vocabulary is of the text tokenizer {known}, {name} is {given}; name the right one with --text_tokenizer"
        )
    return name


def plain_lm(stage: SpeechLM, ema: bool) -> Any:
    """The model without adapters, with averaged weights where asked for.

    Raises:
        ValueError: the run kept no average.
    """
    if ema and stage.ema is None:
        raise ValueError("there is no average of the weights; train with model.init_args.ema_decay to have one")
    if ema and stage.ema is not None:
        stage.ema.copy_to(stage.model)
    merge_lora(stage.lm)
    return stage.lm


Export = Callable[[Any, str | Path, argparse.Namespace], None]
#: What can be written of which stage; the first is written where no format is said.
FORMATS: dict[type, dict[str, Export]] = {
    SpeechLM: {"hf": export_lm, "glm4voice": export_released_lm},
    SpeechTokenizer: {
        "whisper": lambda stage, out, _: export_whisper(stage, out),
        "glm4voice": lambda stage, out, _: export_glm4voice(stage, out),
        "codebook": lambda stage, out, _: export_codebook(stage, out),
    },
    FlowDecoder: {"glm4voice": lambda stage, out, _: write_flow(stage.used, Path(out) / "flow.pt")},
    Vocoder: {"glm4voice": lambda stage, out, _: export_vocoder(stage, out)},
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", help="run folder, or a tokenizer in the released form")
    source.add_argument("--released", help="folder of the released glm-4-voice-9b, to be made one of transformers'")
    parser.add_argument("--out", required=True, help="folder to write")
    names = sorted({name for formats in FORMATS.values() for name in formats})
    parser.add_argument("--format", choices=names, help="what to write; hf of a language model, whisper of a tokenizer")
    parser.add_argument("--checkpoint", help="another checkpoint than the run's newest")
    parser.add_argument("--ema", action="store_true", help="of a language model the averaged weights")
    parser.add_argument("--text_tokenizer", help="of a language model another one than the run's config names")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of a language model's weights")
    parser.add_argument("--verify", action="store_true", help="read a language model's folder back and compare logits")
    return parser


def export_run(settings: argparse.Namespace) -> None:
    """Load a run's stage, or a tokenizer in the released form, and write it.

    Raises:
        ValueError: it can not be written so.
    """
    released = is_released(settings.run)
    stage = released_stage(settings.run) if released else load_stage(settings.run, settings.checkpoint)
    formats = next((formats for kind, formats in FORMATS.items() if isinstance(stage, kind)), {})
    name = settings.format or next(iter(formats), "")
    if name not in formats:
        raise ValueError(f"trained a {type(stage).__name__}, which can not be exported as {name or 'anything'}")
    averaged = settings.ema if isinstance(stage, SpeechLM) else getattr(stage, "average", None) is not None
    account = account_of(stage, averaged).require(settings.run)
    formats[name](stage, settings.out, settings)
    if name != "codebook":  # of which alone the account would be untrue
        print(account)
    if not released:  # nothing is known of how it was trained
        write_model_card(settings.run, stage, settings.out, name)


def main(args: Sequence[str] | None = None) -> None:
    """Parse, load, write."""
    hide_secrets()
    parser = build_parser()
    settings = parser.parse_args(args)
    try:
        if settings.run:
            export_run(settings)
        else:
            convert_released(settings.released, settings.out)
    except ValueError as error:
        parser.error(f"--run {settings.run}: {error}" if settings.run else f"--released {settings.released}: {error}")
    print(f"{settings.run or settings.released} -> {settings.out}")


if __name__ == "__main__":
    main()
