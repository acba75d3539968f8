"""Models whose every score is known beforehand, to check a suite from its items to its table: `--model planted=oracle`.

Their speech is a tone per letter, so tokenizer, decoder and recogniser are exact, and real sound is written and read on the way.

- `oracle` finds the right side of every pair twice as likely per id, says and writes what is right, and is judged best.
- `anti_oracle` finds the wrong side twice as likely, and answers nonsense.
- `uniform` gives every id the same probability: scores per id are all equal, sums prefer what is shorter.
- `length_biased` pays 10 nats for a sequence and 0.1 for an id: per id it prefers what is longer, in sum what is shorter.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speechlm.evals.items import Item, read_items
from speechlm.evals.parts import Likelihood, MissingPart, Piece, Scorable, Sum
from speechlm.evals.quality import Quality
from speechlm.evals.task import Task
from speechlm.tokens.templates import Template
from speechlm.tokens.vocab import Vocab

KINDS = ("oracle", "anti_oracle", "uniform", "length_biased")
LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789'"
RATE_HZ, SAMPLES = 16_000, 640  # of a letter: 25 a second
LOWEST_HZ, STEP_HZ = 300, 150
NONSENSE = "zzz"
VOCAB = Vocab(num_text=128, num_speech=len(LETTERS))


def codes_of(text: str) -> list[int]:
    """A code for each letter or digit."""
    return [LETTERS.index(c) for c in re.sub(r"[^a-z0-9' ]", " ", text.lower())]


def text_of(codes: Iterable[int]) -> str:
    """What codes say."""
    return "".join(LETTERS[c] for c in codes)


def sound_of(codes: Sequence[int]) -> np.ndarray:
    """(N,) float32: a tone for each code."""
    time = np.arange(SAMPLES) / RATE_HZ
    hz = LOWEST_HZ + STEP_HZ * np.array(codes, np.float64)
    return (0.3 * np.sin(2 * np.pi * hz[:, None] * time)).astype(np.float32).ravel()


def codes_in(audio: np.ndarray) -> np.ndarray:
    """(T,) the codes of the tones."""
    frames = audio[: len(audio) // SAMPLES * SAMPLES].reshape(-1, SAMPLES)
    hz = np.abs(np.fft.rfft(frames)).argmax(axis=1) * RATE_HZ / SAMPLES
    return np.rint((hz - LOWEST_HZ) / STEP_HZ).clip(0, len(LETTERS) - 1).astype(np.int64)


class Planted:
    """All parts of a model, see `speechlm.evals.parts.Parts`.

    Args:
        kind: one of `KINDS`.
        tasks: whose items hold what is right.

    Raises:
        ValueError: there is no such kind.
    """

    num_codes, token_rate_hz, sample_rate_hz = len(LETTERS), RATE_HZ / SAMPLES, RATE_HZ
    longest_sec = math.inf

    def __init__(self, kind: str, tasks: Mapping[str, Task]) -> None:
        if kind not in KINDS:
            raise ValueError(f"planted models are {', '.join(KINDS)}, got {kind!r}")
        self.kind, self.hash = kind, kind
        files = [read_items(task.items, task.check) for task in tasks.values()]
        self._right = {key for file in files for item in file.items for key in _right_sides(item)}
        self._book = {
            _bare(question): answer for file in files for item in file.items for question, answer in _known(item)
        }
        self.hashes: dict[str, str] = {}

    def hash_of(self, part: str) -> str:
        """Its kind; "codes" are the same in all."""
        self.hashes[part] = "tones" if part == "codes" else f"planted {self.kind}"
        return self.hashes[part]

    @property
    def lm(self) -> "Planted":
        """It is all parts at once."""
        return self

    tokens = text_to_token = decoder = judge = lm

    def listener(self, language: str) -> "Planted":
        """It hears tones, in any language."""
        return self

    def quality(self, name: str) -> Quality:
        """A grade of 1 for any sound."""
        return Quality(name, "planted", False, lambda audio, reference: 1.0)

    @property
    def plain_model(self) -> Any:
        """It has no network.

        Raises:
            MissingPart: always.
        """
        raise MissingPart("a planted model is no network that lm-eval could ask")

    # -- speech --------------------------------------------------------------------------------------------------------

    def tokenize(self, audio: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `SpeechTokens.tokenize`."""
        return [codes_in(one) for one in audio]

    def transcribe(self, audio: Sequence[np.ndarray], languages: Sequence[str]) -> list[str]:
        """What the tones say, whether as a tokenizer or as the recogniser that judges."""
        return [text_of(codes_in(one)) for one in audio]

    def sound(self, codes: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See `Decoder.sound`."""
        return [sound_of(one) for one in codes]

    def read(self, codes: Sequence[Sequence[int]], languages: Sequence[str]) -> list[str]:
        """See `SpeechTokens.read`."""
        return [text_of(one) for one in codes]

    def speak(
        self, texts: Sequence[str], languages: Sequence[str], template: Template | None = None, voice: str = ""
    ) -> list[list[int] | None]:
        """See `TextToSpeechTokens.speak`."""
        return [codes_of(text if self.kind == "oracle" else NONSENSE) for text in texts]

    # -- language ------------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """A character, an id."""
        return [ord(c) for c in text if ord(c) < VOCAB.num_text]

    def decode(self, ids: Sequence[int]) -> str:
        """And back."""
        return "".join(map(chr, ids))

    def ids_of(self, pieces: Sequence[Piece]) -> list[int]:
        """Shared ids of `VOCAB`."""
        found: list[int] = []
        for kind, value in pieces:
            ids = {"control": lambda v: [VOCAB.control(v)], "speech": lambda v: [VOCAB.speech_offset + c for c in v]}
            found += ids.get(kind, list)(value)
        return found

    def likelihoods(self, sequences: Sequence[Scorable]) -> list[Likelihood]:
        """By what the sequence says, and how long it is."""
        return [self._likelihood(one) for one in sequences]

    def write(self, prompts: Sequence[list[int]], max_new: int, english: bool = False) -> list[str]:
        """The answer to what the prompt ends with."""
        return [self._answer(prompt)[:max_new] for prompt in prompts]

    def say(self, prompts: Sequence[list[int]], max_new: int) -> list[list[int] | None]:
        """The same in speech; None where it would be longer than allowed."""
        spoken = [codes_of(self._answer(prompt)) for prompt in prompts]
        return [codes if len(codes) <= max_new else None for codes in spoken]

    def reply(self, prompts: Sequence[list[int]], max_new: int, english: bool = False) -> list[tuple[str, list[int]]]:
        """Both."""
        answers = [self._answer(prompt) for prompt in prompts]
        return [(answer, codes_of(answer)) for answer in answers]

    # -- judge ---------------------------------------------------------------------------------------------------------

    @property
    def protocol(self) -> dict[str, Any]:
        """As a judge."""
        return {"model": "planted"}

    def ask(self, prompt: str) -> str:
        """The best for the oracle, the worst for all others, in the form that the prompt asks for."""
        best = self.kind == "oracle"
        if '"judgment"' in prompt:
            return '{"analysis": "planted", "judgment": "%s"}' % ("correct" if best else "incorrect")
        return "[[10]]" if best else "[[1]]"

    def _likelihood(self, sequence: Scorable) -> Likelihood:
        counted = [n for n, i in enumerate(sequence.ids) if n and not _is_control(i)]
        ending = [n for n in counted if n >= sequence.ending]
        right = _said(sequence.ids) in self._right
        return Likelihood(self._sum(len(counted), right), self._sum(len(ending), right))

    def _sum(self, count: int, right: bool) -> Sum:
        if self.kind == "uniform":
            return Sum(count * math.log(len(VOCAB)), count * math.log(VOCAB.num_speech), count)
        if self.kind == "length_biased":
            return Sum(10 + 0.1 * count, 10 + 0.05 * count, count)
        cost = 1.0 if right == (self.kind == "oracle") else 2.0
        return Sum(cost * count, 0.5 * cost * count, count)

    def _answer(self, prompt: list[int]) -> str:
        if self.kind != "oracle":
            return NONSENSE
        said = _said(prompt)
        ends = [(said.rfind(key) + len(key), len(key), key) for key in self._book if key in said]
        return self._book[max(ends)[2]] if ends else NONSENSE


def _is_control(shared_id: int) -> bool:
    return VOCAB.num_text <= shared_id < VOCAB.speech_offset


def _said(ids: Sequence[int]) -> str:
    """Text and speech of a sequence, letters and digits alone."""
    offset = VOCAB.speech_offset
    return _bare("".join(chr(i) if i < VOCAB.num_text else LETTERS[i - offset] for i in ids if not _is_control(i)))


def _bare(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _right_sides(item: Item) -> list[str]:
    if "positive" not in item:
        return []
    context = item["context"].get("text", "") if item.get("context") else ""
    return [_bare(f"{context} {item['positive'].get('text', '')}")]


def _known(item: Item) -> list[tuple[str, str]]:
    """(what is asked, what is right to answer)."""
    if "question" in item:
        return [(item["question"]["text"], str(item["answers"][0]))]
    if "instruction" in item:
        return [(item["instruction"]["text"], str((item.get("references") or ["yes of course"])[0]))]
    return [(item["speech"]["text"], item["speech"]["text"])] if "speech" in item else []


def write_tones(path: Path, text: str) -> None:
    """A recording of a text in the speech of planted models."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound_of(codes_of(text)), RATE_HZ, subtype="PCM_16")
