"""What is evaluated, from where its parts are: runs, exports and released folders, told apart by what is in them."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from speechlm import runs
from speechlm.engines.base import Sampling
from speechlm.evals.judge import Judge
from speechlm.evals.language_model import EvaluatedLM, SpeakingLM
from speechlm.evals.parts import Listener, MissingPart
from speechlm.evals.quality import Quality, load_quality
from speechlm.load import load_stage
from speechlm.nn.glm4voice import is_released
from speechlm.nn.hub_asr import load_asr
from speechlm.nn.lora import merge_lora
from speechlm.nn.whisper_tokens import WhisperTokens
from speechlm.released import released_stage
from speechlm.resynthesis import FLOW, open_decoder
from speechlm.stages.flow_decoder import FlowDecoder
from speechlm.stages.speech_lm import SpeechLM
from speechlm.stages.speech_tokenizer import SpeechTokenizer
from speechlm.tokens.tokenizer import fingerprint
from speechlm.tokens.vocab import Vocab

ROLES = ("speech_tokenizer", "lm", "text_to_token", "flow_decoder", "vocoder", "planted")
STAGES = {
    "SpeechTokenizer": "speech_tokenizer", "SpeechLM": "lm", "TextToToken": "text_to_token", "FlowDecoder": "flow_decoder",
    "Vocoder": "vocoder",
}  # fmt: skip
BATCH_SECONDS = 120.0


@dataclass(frozen=True)
class Judges:
    """What judges, and is part of the protocol.

    Args:
        asr: recogniser by language, a name or folder of any that transformers has.
        quality_models: models of grades that need one, by the grade's name, see `speechlm.evals.quality`.
        judge: of chats; null for none.
    """

    asr: dict[str, str] = field(default_factory=lambda: {"en": "openai/whisper-large-v3"})
    quality_models: dict[str, str] = field(default_factory=dict)
    judge: Judge | None = None


def roles_of(given: Sequence[str]) -> dict[str, str]:
    """Which part each of `--model [part=]FOLDER …` is.

    Raises:
        ValueError: a folder is none of them, or two are the same.
    """
    found: dict[str, str] = {}
    for one in given:
        name, _, path = one.rpartition("=")
        role = name or _role_of(Path(path))
        if role not in ROLES:
            raise ValueError(f"--model has the parts {', '.join(ROLES)}, got {role!r}")
        if role in found:
            raise ValueError(
                f"--model names two parts {role}: {found[role]} and {path}; say which is which, as in lm=FOLDER"
            )
        found[role] = path
    return found


def _role_of(folder: Path) -> str:
    config = runs.read_config(folder) if folder.is_dir() else None
    if config is not None:
        stage = str(config["model"]["class_path"]).rpartition(".")[2]
        if stage not in STAGES:
            raise ValueError(f"{folder} is a run of {stage}, which is no part that is evaluated")
        return STAGES[stage]
    if folder.is_dir() and is_released(folder):
        return "speech_tokenizer"
    if (folder / FLOW).is_file():
        return "flow_decoder"
    if (folder / "vocab.json").is_file() and (folder / "config.json").is_file():
        return "lm"
    raise ValueError(
        f"{folder} is neither a run, nor an exported language model, nor a tokenizer or decoder in the released form"
    )


class ModelParts:
    """Parts as tasks ask for them, loaded when first asked for; see `speechlm.evals.parts.Parts`.

    Args:
        folders: by part, of `roles_of`.
        judges: what judges.
        device: to compute on.
        sampling: of the language model.
        speaker: name among the decoder's speaker vectors, where it has some.
        dtype: of the language model on a GPU.
    """

    def __init__(
        self,
        folders: dict[str, str],
        judges: Judges,
        device: torch.device,
        sampling: Sampling,
        speaker: str = "",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.folders, self.judges, self.device, self.sampling = folders, judges, device, sampling
        self.speaker, self.dtype = speaker, dtype
        self._hashes: dict[str, str] = {}
        self._listeners: dict[str, Any] = {}
        self._qualities: dict[str, Quality] = {}

    def hash_of(self, part: str) -> str:
        """See `Parts.hash_of`; asked once."""
        if part not in self._hashes:
            self._hashes[part] = self._hash_of(part)
        return self._hashes[part]

    @property
    def hashes(self) -> dict[str, str]:
        """Of all parts that were asked for."""
        return dict(self._hashes)

    def _hash_of(self, part: str) -> str:
        kind, _, name = part.partition(" ")
        made: dict[str, Callable[[], str]] = {
            "lm": lambda: fingerprint(asdict(self.sampling), self.lm.plain_model.state_dict()),
            "tokens": lambda: self.tokens.whole_hash,
            "codes": self._codes_hash,
            "text_to_token": lambda: fingerprint(asdict(self.sampling), self.text_to_token.lm.plain_model.state_dict()),
            "decoder": lambda: self.decoder.hash,
            "listener": lambda: str(self._recogniser(name).hash),
            "quality": lambda: self.quality(name).version,
            "judge": lambda: str(self.judge.protocol),
        }
        return made[kind]()

    def _codes_hash(self) -> str:
        if "speech_tokenizer" in self.folders:
            return self.tokens.checked().hash
        role = "lm" if "lm" in self.folders else "text_to_token"
        vocab = (self.lm if role == "lm" else self.text_to_token.lm).vocab
        return vocab.speech_tokenizer or "as given"

    @cached_property
    def lm(self) -> EvaluatedLM:
        """The language model."""
        return self._language_model("lm")

    @cached_property
    def text_to_token(self) -> SpeakingLM:
        """The text-to-token model."""
        return SpeakingLM(self._language_model("text_to_token"))

    @cached_property
    def tokens(self) -> "RunTokenizer":
        """The speech tokenizer."""
        folder = self._folder("speech_tokenizer")
        stage = released_stage(folder) if is_released(folder) else load_stage(folder)
        if not isinstance(stage, SpeechTokenizer):
            raise ValueError(f"{folder} is no speech tokenizer")
        return RunTokenizer(stage, self.device)

    @cached_property
    def decoder(self) -> "RunDecoder":
        """The flow decoder and its vocoder."""
        stage = open_decoder(str(self._folder("flow_decoder")), self.folders.get("vocoder"))
        return RunDecoder(stage, self.device, self.speaker)

    def listener(self, language: str) -> Listener:
        """The recogniser of a language."""
        return Recogniser(self._recogniser(language))

    @property
    def judge(self) -> Judge:
        """The judge of chats."""
        if self.judges.judge is None:
            raise MissingPart("there is no judge; set `judges.judge`")
        return self.judges.judge

    def quality(self, name: str) -> Quality:
        """A grade of sound."""
        if name not in self._qualities:
            self._qualities[name] = load_quality(name, self.judges.quality_models.get(name, ""), str(self.device))
        return self._qualities[name]

    def _folder(self, role: str) -> Path:
        if role not in self.folders:
            raise MissingPart(f"it needs a {role}: --model {role}=FOLDER")
        return Path(self.folders[role])

    def _recogniser(self, language: str) -> Any:
        if language not in self.judges.asr:
            raise MissingPart(f"there is no recogniser for {language!r}; set `judges.asr.{language}`")
        name = self.judges.asr[language]
        if name not in self._listeners:
            self._listeners[name] = load_asr(name, self.device)
        return self._listeners[name]

    def _language_model(self, role: str) -> EvaluatedLM:
        folder = self._folder(role)
        if runs.read_config(folder) is None:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype, use_safetensors=True)
            return EvaluatedLM(model.to(self.device), Vocab.load(folder / "vocab.json"), str(folder), self.sampling)
        stage = load_stage(folder)
        if not isinstance(stage, SpeechLM):
            raise ValueError(f"{folder} trained a {type(stage).__name__}, which is no language model")
        merge_lora(stage.lm)
        return EvaluatedLM(stage.lm.to(self.device, self.dtype), stage.vocab, stage.text_tokenizer, self.sampling)


class RunTokenizer:
    """A speech tokenizer of a run; `hash` is that of its codes, `whole_hash` of its transcripts too.

    A run that has no quantiser yet only transcribes: what a tokenizer that starts from it is measured against.
    """

    def __init__(self, stage: SpeechTokenizer, device: torch.device) -> None:
        self.stage, self.device = stage.to(device), device
        self.num_codes, self.token_rate_hz = stage.num_codes, float(stage.clock.token_rate_hz)
        self.window_samples = stage.clock.samples_of_tokens(stage.model.encoder.max_tokens)
        self.longest_sec = self.window_samples / stage.clock.sample_rate_hz
        self.hash, self.whole_hash = "", fingerprint({}, stage.model.state_dict())
        if self.num_codes:
            self.hash = WhisperTokens(stage.model.log_mel, copy.deepcopy(stage.model.encoder), stage.clock).hash

    def checked(self) -> "RunTokenizer":
        """Itself, where it has codes to give.

        Raises:
            MissingPart: it has no quantiser.
        """
        if not self.num_codes:
            raise MissingPart("it needs speech tokens, and the speech tokenizer has no quantiser")
        return self

    def tokenize(self, audio: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes of 16 kHz waveforms, longer ones in the pieces that `speechlm.tokenize` makes of them."""
        self.checked()
        window, made = self.window_samples, list[np.ndarray]()
        pieces = [one[begin : begin + window] for one in audio for begin in range(0, max(1, len(one)), window)]
        for batch in _batches(pieces):
            codes, lens = self.stage.tokenize(*self._padded(batch))
            made += [row[:length].cpu().numpy() for row, length in zip(codes, lens.tolist(), strict=True)]
        counts = [-(-max(1, len(one)) // window) for one in audio]
        return [np.concatenate(made[sum(counts[:n]) :][:count]) for n, count in enumerate(counts)]

    def transcribe(self, audio: Sequence[np.ndarray], languages: Sequence[str]) -> list[str]:
        """Transcripts through the bottleneck, in languages that it can be asked for."""
        asked, made = self._asked(languages), list[str]()
        for batch in _batches(audio):
            made += self.stage.transcribe(*self._padded(batch), asked[len(made) : len(made) + len(batch)])
        return made

    def read(self, codes: Sequence[Sequence[int]], languages: Sequence[str]) -> list[str]:
        """Transcripts of codes, one at a time."""
        made: list[str] = []
        for one, language in zip(codes, self.checked()._asked(languages), strict=True):
            row = torch.tensor([list(one)], device=self.device)
            made += self.stage.read(row, torch.tensor([len(one)], device=self.device), [language])
        return made

    def _asked(self, languages: Sequence[str]) -> list[str]:
        known = self.stage.languages
        return [code if known is None or code in known else "" for code in languages]

    def _padded(self, batch: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        lens = torch.tensor([len(one) for one in batch])
        audio = nn.utils.rnn.pad_sequence([torch.from_numpy(one) for one in batch], batch_first=True)
        return audio.to(self.device), lens.to(self.device)


class RunDecoder:
    """A flow decoder of a run with its vocoder."""

    def __init__(self, stage: FlowDecoder, device: torch.device, speaker: str) -> None:
        self.stage, self.device = stage.to(device).eval(), device
        self.sample_rate_hz = int(stage.clock.sample_rate_hz)
        self.vector: Tensor | None = None
        vectors = stage.speaker_vectors
        if vectors:
            if speaker and speaker not in vectors:
                raise ValueError(f"the decoder has no speaker {speaker!r}; it has {sorted(vectors)[:8]}")
            self.vector = vectors[speaker or sorted(vectors)[0]]
        whole = {**stage.used.state_dict(), **{f"vocoder.{k}": v for k, v in stage.vocoder().state_dict().items()}}
        self.hash = fingerprint({"speaker": speaker, "sampling": str(stage.sampling)}, whole)

    @torch.inference_mode()
    def sound(self, codes: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Waveforms, each by itself: a batch of one is what a listener would get."""
        made = []
        for one in codes:
            tokens, lens = torch.tensor([list(one)], device=self.device), torch.tensor([len(one)], device=self.device)
            speakers = None if self.vector is None else self.vector[None].to(self.device)
            audio, samples = self.stage.speak(tokens, lens, speakers=speakers)
            made.append(audio[0, : int(samples[0])].cpu().numpy())
        return made


class Recogniser:
    """A recogniser of the hub, in batches."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def transcribe(self, audio: Sequence[np.ndarray], languages: Sequence[str]) -> list[str]:
        """Transcripts of 16 kHz waveforms."""
        made: list[str] = []
        for batch in _batches(audio, 30.0 * 8):
            asked = [
                code if code in self.model.languages else "" for code in languages[len(made) : len(made) + len(batch)]
            ]
            made += [label.text for label in self.model.transcribe(list(batch), asked)]
        return made


class SavedParts:
    """Of an evaluation that was made before: the hashes of its parts, and nothing else.

    Args:
        hashes: by part.
    """

    def __init__(self, hashes: dict[str, str]) -> None:
        self.hashes = hashes

    def hash_of(self, part: str) -> str:
        """What the part was."""
        if part not in self.hashes:
            raise MissingPart(f"it was not run with a {part}")
        return self.hashes[part]

    def __getattr__(self, name: str) -> Any:
        raise MissingPart(f"scoring again needs no {name}")


def _batches(audio: Sequence[np.ndarray], seconds: float = BATCH_SECONDS) -> list[list[np.ndarray]]:
    """In order, as many as their longest lets fit."""
    batches: list[list[np.ndarray]] = []
    for one in audio:
        longest = max([len(one), *(len(other) for other in batches[-1])]) if batches else len(one)
        if not batches or longest * (len(batches[-1]) + 1) > seconds * 16_000:
            batches.append([])
        batches[-1].append(one)
    return batches
