"""A bundle's folder as a `Voice`: parts loaded, found to fit each other, and moved to their device."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from speechlm.devices import choose_device
from speechlm.engines.hugging_face_stream import HuggingFaceStreams
from speechlm.engines.id_kinds import IdKinds
from speechlm.engines.sglang_stream import SGLangStreams
from speechlm.engines.streaming import StreamingEngine
from speechlm.nn.flow_stream import MelStream
from speechlm.serving.bundle import Manifest, read_manifest
from speechlm.serving.parts import read_stage
from speechlm.serving.turns import activity_of
from speechlm.serving.voice import Limits, Voice
from speechlm.stages.flow_decoder import FlowDecoder
from speechlm.stages.speech_tokenizer import SpeechTokenizer
from speechlm.stages.vocoder import Vocoder
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.chat_templates import Chat, named_template
from speechlm.tokens.vocab import Vocab


@dataclass(frozen=True)
class Runtime:
    """Where and how a bundle runs.

    Args:
        device: auto, cpu, cuda or cuda:N.
        dtype: of the language model.
        replies: at once in the language model.
        waiting: replies that may wait for a place.
        stall_sec: longest wait for an id.
        sglang: address of an SGLang server that runs the bundle's lm folder, instead of running it here.
        activity: what hears that somebody speaks.
        verify: compute the hashes of all files.
    """

    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    replies: int = 8
    waiting: int = 32
    stall_sec: float = 20.0
    sglang: str = ""
    activity: Literal["auto", "silero", "loudness"] = "auto"
    verify: bool = True


def open_voice(
    folder: str | Path,
    runtime: Runtime = Runtime(),
    limits: Limits = Limits(),  # noqa: B008
) -> Voice:
    """Load a bundle.

    Raises:
        ValueError: it is none, was changed, or its parts do not fit each other.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, runtime.verify)
    vocab, text = Vocab.load(folder / "lm" / "vocab.json"), TextTokenizer(folder / "lm")
    tokenizer, decoder, vocoder = (read_stage(folder / part) for part in ("tokenizer", "decoder", "vocoder"))
    require_fit(vocab, tokenizer, decoder, vocoder)
    assert isinstance(tokenizer, SpeechTokenizer) and isinstance(decoder, FlowDecoder) and isinstance(vocoder, Vocoder)
    device = choose_device(runtime.device)
    for stage in (tokenizer, decoder, vocoder):
        stage.to(device).requires_grad_(False)
    kinds = IdKinds(vocab, [i for i in text.specials.values() if i < vocab.num_text])
    return Voice(
        name=manifest.name,
        template_name=manifest.template,
        tokenizer=tokenizer,
        text=text,
        vocab=vocab,
        template=open_template(manifest, vocab, text),
        engine=open_engine(folder / "lm", kinds, manifest, runtime, device),
        open_mel=_mel_of(decoder, manifest),
        vocoder=vocoder.generator.eval(),
        output_clock=decoder.clock,
        open_activity=lambda: activity_of(runtime.activity),
        speakers=tuple(decoder.speaker_vectors or ()),
        sampling=manifest.sampling,
        instructions=manifest.instructions,
        limits=limits,
        device=device,
        transcribe=_transcriber(tokenizer, device),
    )


def open_template(manifest: Manifest, vocab: Vocab, text: TextTokenizer) -> Chat:
    """The bundle's chat template for its vocabulary; names of the exported tokenizer that are not text are the vocabulary's."""
    template = named_template(manifest.template, manifest.text_block, manifest.speech_block)
    specials = {name: i for name, i in text.specials.items() if i < vocab.num_text}
    return Chat(template, vocab, text.ids_of, specials)


def require_fit(vocab: Vocab, tokenizer: Any, decoder: Any, vocoder: Any) -> None:
    """Parts that were trained for one another.

    Raises:
        ValueError: they were not; the message says what differs.
    """
    for part, stage, kind in (
        ("tokenizer", tokenizer, SpeechTokenizer),
        ("decoder", decoder, FlowDecoder),
        ("vocoder", vocoder, Vocoder),
    ):
        if not isinstance(stage, kind):
            raise ValueError(f"the {part} is a {type(stage).__name__}, expected a {kind.__name__}")
    codes = {"lm": vocab.num_speech, "tokenizer": tokenizer.num_codes, "decoder": decoder.network.num_tokens}
    if len(set(codes.values())) > 1:
        raise ValueError(f"the parts have codebooks of different sizes: {codes}")
    token_rates = {"tokenizer": tokenizer.clock.token_rate_hz, "decoder": decoder.clock.token_rate_hz}
    if len(set(token_rates.values())) > 1:
        raise ValueError(f"the parts have different token rates: {token_rates}")
    sound = (decoder.clock.sample_rate_hz, decoder.clock.hop_samples, decoder.network.num_mels)
    spoken = vocoder.generator
    if sound != (spoken.sample_rate_hz, spoken.hop_samples, spoken.num_mels):
        raise ValueError(f"the decoder's rate, hop and mel bins are {sound}, the vocoder's others")


def open_engine(
    folder: Path, kinds: IdKinds, manifest: Manifest, runtime: Runtime, device: torch.device
) -> StreamingEngine:
    """What generates replies: a server where one is named, else the model in this process."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    max_length = min(manifest.max_length, getattr(config, "max_position_embeddings", manifest.max_length))
    if runtime.sglang:
        return SGLangStreams(runtime.sglang, kinds, config.vocab_size, max_length, stall_sec=runtime.stall_sec)
    lm = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, runtime.dtype), use_safetensors=True, trust_remote_code=False
    )
    lm = lm.to(device).eval().requires_grad_(False)
    return HuggingFaceStreams(lm, kinds, runtime.replies, max_length, runtime.waiting, runtime.stall_sec)


def _mel_of(decoder: FlowDecoder, manifest: Manifest) -> Callable[[str], MelStream]:
    block = decoder.used.block_tokens
    first, chunk = manifest.first_tokens or block, manifest.chunk_tokens or block

    def opened(speaker: str) -> MelStream:
        vectors = None
        if decoder.speaker_vectors is not None:
            vectors = decoder.speaker_vectors[speaker][None].to(decoder.device)
        return decoder.stream(first_tokens=first, chunk_tokens=chunk, speakers=vectors)

    return opened


def _transcriber(tokenizer: SpeechTokenizer, device: torch.device) -> Callable[[np.ndarray], str]:
    def transcribe(audio: np.ndarray) -> str:
        waveform = torch.from_numpy(audio).to(device)[None]
        with torch.no_grad():
            return tokenizer.transcribe(waveform, torch.tensor([len(audio)], device=device))[0]

    return transcribe
