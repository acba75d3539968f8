"""Speech recognisers of the Hugging Face hub, sequence-to-sequence or CTC, with how sure they are of what they heard.

The confidence is the mean log-probability of the tokens of a transcript: of a sequence-to-sequence model, each given all before
it and the end counted in; of a CTC model, each emitted token at its likeliest frame of the greedy path.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CTC_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
)

from speechlm.tokens.tokenizer import fingerprint

NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # how Whispers of different years write it
WHISPER_SECONDS = 30.0


@dataclass(frozen=True)
class Label:
    """What a model heard.

    Args:
        text: "" where it heard nothing.
        language: code, "" where the model knows no languages and none was given.
        confidence: mean log-probability of the tokens.
        no_speech: probability that nobody speaks, None where the model has no such token.
    """

    text: str
    language: str
    confidence: float
    no_speech: float | None = None


class HubModel:
    """What both kinds share: weights, features, text.

    Args:
        name: name or folder of the checkpoint.
        auto: transformers' class that loads this kind.
        device: to compute on.
        bf16: compute in bfloat16, which changes a few transcripts.
    """

    def __init__(self, name: str, auto: Any, device: torch.device, bf16: bool) -> None:
        self.name, self.device, self.bf16 = name, device, bf16
        self.model = auto.from_pretrained(name, dtype=torch.float32).eval().requires_grad_(False)
        self.features = AutoFeatureExtractor.from_pretrained(name)
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.sample_rate_hz = int(self.features.sampling_rate)
        self.languages: frozenset[str] = frozenset()
        kept = self.model.config.to_dict()
        settings = {key: kept[key] for key in ("model_type", "architectures", "vocab_size") if key in kept}
        self.hash = fingerprint(settings, self.model.state_dict())
        self.model.to(device)

    def padded_seconds(self, seconds: float) -> float:
        """As long as the longest."""
        return seconds

    def _inputs(self, audio: list[np.ndarray], **padding: Any) -> dict[str, Tensor]:
        found = self.features(audio, sampling_rate=self.sample_rate_hz, return_tensors="pt", **padding)
        return {name: value.to(self.device) for name, value in found.items()}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


class Seq2SeqASR(HubModel):
    """Whisper and its like: an encoder, and a decoder that writes token after token; arguments as of `HubModel`."""

    def __init__(self, name: str, device: torch.device, bf16: bool = False) -> None:
        super().__init__(name, AutoModelForSpeechSeq2Seq, device, bf16)
        config = self.model.generation_config
        self.whisper = self.model.config.model_type == "whisper"
        self.eos = config.eos_token_id if isinstance(config.eos_token_id, int) else config.eos_token_id[0]
        if getattr(config, "is_multilingual", False):
            self.languages = frozenset(token.strip("<|>") for token in config.lang_to_id)
        self.no_speech = next((id_ for id_ in map(self._id_of, NO_SPEECH) if id_ is not None), None)

    def padded_seconds(self, seconds: float) -> float:
        """Whisper fills up to 30 s, whatever comes in."""
        return WHISPER_SECONDS if self.whisper else seconds

    @torch.inference_mode()
    def transcribe(self, audio: list[np.ndarray], languages: list[str]) -> list[Label]:
        """Greedy.

        Raises:
            ValueError: a language that the model does not know.
        """
        inputs = self._inputs(audio) if self.whisper else self._inputs(audio, padding=True)
        with self._autocast():
            encoded = self.model.get_encoder()(**inputs)
            codes = self._languages(encoded, languages) if self.languages else languages
            options: dict[str, Any] = {"force_unique_generate_call": True} if self.whisper else {}
            if self.languages:
                options |= {"language": codes, "task": "transcribe"}
            ids = self.model.generate(**inputs, encoder_outputs=encoded, **options)
            mask = {"attention_mask": inputs["attention_mask"]} if "attention_mask" in inputs else {}
            logits = self.model(encoder_outputs=encoded, decoder_input_ids=ids[:, :-1], **mask).logits
        return [self._label(*row) for row in zip(ids, logits, codes, strict=True)]

    def _languages(self, encoded: Any, languages: list[str]) -> list[str]:
        """The languages given, and what the model takes the others for."""
        unknown = sorted(set(languages) - self.languages - {""})
        if unknown:
            raise ValueError(
                f"{self.name} does not know {', '.join(unknown)}; it knows {', '.join(sorted(self.languages))}"
            )
        if all(languages):
            return languages
        found = self.tokenizer.convert_ids_to_tokens(self.model.detect_language(encoder_outputs=encoded).tolist())
        return [code or token.strip("<|>") for code, token in zip(languages, found, strict=True)]

    def _label(self, ids: Tensor, logits: Tensor, language: str) -> Label:
        """(L,) ids from the first of the prompt on and (L-1, V) what was expected behind each."""
        first = self._prompt_length(ids)
        ends = (ids[first:] == self.eos).nonzero()
        last = first + int(ends[0]) + 1 if len(ends) else len(ids)
        log_probs = logits[first - 1 : last - 1].float().log_softmax(-1)
        confidence = log_probs.gather(1, ids[first:last, None]).mean() if last > first else torch.tensor(0.0)
        silent = None if self.no_speech is None else float(logits[0].float().softmax(-1)[self.no_speech])
        text = self.tokenizer.decode(ids[first:last], skip_special_tokens=True).strip()
        return Label(text, language, float(confidence), silent)

    def _prompt_length(self, ids: Tensor) -> int:
        """The start, and the special tokens right behind it but for the end."""
        special = set(self.tokenizer.all_special_ids) - {self.eos}
        length = 1
        while length < len(ids) and int(ids[length]) in special:
            length += 1
        return length

    def _id_of(self, token: str) -> int | None:
        id_ = self.tokenizer.convert_tokens_to_ids(token)
        return id_ if id_ is not None and self.tokenizer.convert_ids_to_tokens(id_) == token else None


class CtcASR(HubModel):
    """Wav2Vec2 and its like: a distribution over letters for every frame; arguments as of `HubModel`."""

    def __init__(self, name: str, device: torch.device, bf16: bool = False) -> None:
        super().__init__(name, AutoModelForCTC, device, bf16)
        self.blank = int(self.model.config.pad_token_id)

    @torch.inference_mode()
    def transcribe(self, audio: list[np.ndarray], languages: list[str]) -> list[Label]:
        """The likeliest token of every frame, repetitions and blanks taken out."""
        inputs = self._inputs(audio, padding=True)
        with self._autocast():
            log_probs = self.model(**inputs).logits.float().log_softmax(-1)
        longest = max(map(len, audio))
        frames = [max(1, round(log_probs.shape[1] * len(wave) / longest)) for wave in audio]
        rows = zip(log_probs, frames, languages, strict=True)
        return [self._label(row[:num_frames], language) for row, num_frames, language in rows]

    def _label(self, log_probs: Tensor, language: str) -> Label:
        """(F, V) of one recording."""
        best, ids = (side.cpu() for side in log_probs.max(-1))
        starts = torch.ones_like(ids, dtype=torch.bool)
        starts[1:] = ids[1:] != ids[:-1]
        run = starts.cumsum(0) - 1
        peaks = torch.full((int(run[-1]) + 1,), -torch.inf).scatter_reduce(0, run, best, "amax")
        emitted = ids[starts] != self.blank
        confidence = peaks[emitted].mean() if emitted.any() else best.mean()
        text = self.tokenizer.decode(ids.tolist()).replace(self.tokenizer.unk_token or "<unk>", "")
        return Label(" ".join(text.split()), language, float(confidence))


def load_asr(name: str, device: torch.device, bf16: bool = False) -> Seq2SeqASR | CtcASR:
    """The recogniser of a name or folder, of whichever kind it is.

    Raises:
        ValueError: it is neither kind.
        OSError: there is nothing of that name.
    """
    config = AutoConfig.from_pretrained(name)
    if type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING:
        return Seq2SeqASR(name, device, bf16)
    if type(config) in MODEL_FOR_CTC_MAPPING:
        return CtcASR(name, device, bf16)
    raise ValueError(
        f"{name} is a {config.model_type}, which transformers has neither as a sequence-to-sequence nor as a CTC recogniser"
    )
