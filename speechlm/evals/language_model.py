"""A causal language model of speech and text as tasks ask for it: likelihoods, text, speech, and turns of both."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from speechlm.engines.base import Prompt, Sampling, Target
from speechlm.engines.checks import SpeechChecks
from speechlm.engines.hugging_face import HuggingFaceEngine
from speechlm.evals.likelihood import PackedLikelihood
from speechlm.evals.parts import Likelihood, Piece, Scorable
from speechlm.spoken_text import spoken
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.templates import Template, Writer
from speechlm.tokens.vocab import Vocab

END_OF_AUDIO, USER = "<|end_of_audio|>", "<|user|>"


class EvaluatedLM:
    """Any causal LM of transformers with an extended vocabulary.

    Args:
        model: in eval mode.
        vocab: of its ids.
        text_tokenizer: name or folder.
        sampling: of what it generates; greedy by default, so that a protocol says all.
        slots: sequences at once.
        row: ids of a pass of likelihoods.
    """

    def __init__(
        self,
        model: Any,
        vocab: Vocab,
        text_tokenizer: str,
        sampling: Sampling = Sampling(temperature=0.0),  # noqa: B008 - frozen
        slots: int = 16,
        row: int = 4096,
    ) -> None:
        self.plain_model, self.vocab, self.sampling, self.slots = model.eval(), vocab, sampling, slots
        self.text_tokenizer = text_tokenizer
        self.tokenizer = TextTokenizer(text_tokenizer)
        self.has_end = self.tokenizer.end is not None
        self.likelihoods_of = PackedLikelihood(model, vocab, row)
        self._foreign: list[int] | None = None

    @property
    def plain_tokenizer(self) -> str:
        """Name or folder of the text tokenizer, for lm-eval."""
        return self.text_tokenizer

    def encode(self, text: str) -> list[int]:
        """Text-tokenizer ids."""
        return [int(i) for i in self.tokenizer.encode([text])[0]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of text-tokenizer ids, without its special tokens."""
        special = set(self.tokenizer.specials.values())
        return str(self.tokenizer.backend.decode([i for i in ids if i not in special]))

    def ids_of(self, pieces: Sequence[Piece]) -> list[int]:
        """Shared ids.

        Raises:
            ValueError: a control token that neither the vocabulary nor the text tokenizer has, or a code out of range.
        """
        return [i for piece in pieces for i in self._ids(piece)]

    def likelihoods(self, sequences: Sequence[Scorable]) -> list[Likelihood]:
        """See `PackedLikelihood`."""
        return self.likelihoods_of(sequences)

    def write(self, prompts: Sequence[list[int]], max_new: int, english: bool = False) -> list[str]:
        """Text up to its end, or so many ids."""
        stop = self.tokenizer.end if self.tokenizer.end is not None else self.vocab.control(USER)
        target = Target(0, self.vocab.num_text, stop)
        made = self._generate(prompts, max_new, target, self._not_english() if english else ())
        return [self.decode(ids) for ids, _ in made]

    def say(self, prompts: Sequence[list[int]], max_new: int) -> list[list[int] | None]:
        """Speech codes up to the end of audio; None where it does not come, or comes at once."""
        stop = self.vocab.control(END_OF_AUDIO)
        target = Target(self.vocab.speech_offset, self.vocab.num_speech, stop)
        made = self._generate(prompts, max_new, target)
        return [self._codes(ids) if ids and ended else None for ids, ended in made]

    def reply(self, prompts: Sequence[list[int]], max_new: int, english: bool = False) -> list[tuple[str, list[int]]]:
        """Text and speech of a turn, up to the user's next."""
        target = Target(0, len(self.vocab), self.vocab.control(USER))
        made = self._generate(prompts, max_new, target, self._not_english() if english else ())
        return [(self.decode([i for i in ids if i < self.vocab.num_text]), self._codes(ids)) for ids, _ in made]

    def _codes(self, ids: Iterable[int]) -> list[int]:
        """Codes of the speech among shared ids."""
        offset = self.vocab.speech_offset
        return [i - offset for i in ids if offset <= i < len(self.vocab)]

    def _ids(self, piece: Piece) -> list[int]:
        if piece.kind == "control":
            known = self.tokenizer.specials if piece.value in self.tokenizer.specials else {}
            if piece.value not in self.vocab.controls and not known:
                raise ValueError(
                    f"a template names {piece.value}, which is neither a control token ({list(self.vocab.controls)}) nor a "
                    f"special token of the text tokenizer"
                )
            return [known.get(piece.value) or self.vocab.control(piece.value)]
        convert = self.vocab.speech_to_ids if piece.kind == "speech" else self.vocab.text_to_ids
        return [int(i) for i in convert(np.asarray(piece.value, np.int64))]

    def _generate(
        self, prompts: Sequence[list[int]], max_new: int, target: Target, banned: Sequence[int] = ()
    ) -> list[tuple[list[int], bool]]:
        """(ids, whether they came to an end) for every prompt."""
        if not prompts:
            return []
        room = max(map(len, prompts)) + max_new
        engine = HuggingFaceEngine(self.plain_model, target, min(self.slots, len(prompts)), room, banned)
        asked = [Prompt(str(n), tuple(ids), max_new) for n, ids in enumerate(prompts)]
        made = {one.key: (list(one.ids), one.finish == "stop") for one in engine.generate(asked, self.sampling)}
        return [made[str(n)] for n in range(len(prompts))]

    def _not_english(self) -> list[int]:
        """Text ids with a letter that is not of the Latin alphabet's first blocks; half a character counts as one."""
        if self._foreign is None:
            texts = (self.tokenizer.backend.decode([i], skip_special_tokens=False) for i in range(self.tokenizer.size))
            self._foreign = [n for n, text in enumerate(texts) if any(ord(c) > 0x24F and not _mark(c) for c in text)]
        return self._foreign


class SpeakingLM:
    """A text-to-token model: an `EvaluatedLM` that is asked to read, with the checks of bulk synthesis.

    Args:
        lm: the model.
        template: of the rows it was trained on; None is the default of `tts`.
        checks: bounds on what is generated.
    """

    def __init__(
        self,
        lm: EvaluatedLM,
        template: Template | None = None,
        checks: SpeechChecks = SpeechChecks(),  # noqa: B008
    ) -> None:
        self.lm, self.checks = lm, checks
        self.writer = Writer("tts", template, lm.vocab, lm.encode, lm.tokenizer.specials, lm.tokenizer.end)

    @torch.no_grad()
    def speak(self, texts: Sequence[str], languages: Sequence[str]) -> list[list[int] | None]:
        """Codes, None where what came can not be the speech of the text."""
        vocab, ids = self.lm.vocab, self._encoded(texts, languages)
        target = Target(vocab.speech_offset, vocab.num_speech, self.writer.closing)
        prompts = [
            Prompt(str(n), tuple(self.writer.opening(one).tolist()), self.checks.max_new(len(one)))
            for n, one in enumerate(ids)
        ]
        room = max(len(prompt.ids) + prompt.max_new for prompt in prompts)
        engine = HuggingFaceEngine(self.lm.plain_model, target, min(self.lm.slots, len(prompts)), room)
        made: list[list[int] | None] = [None] * len(texts)
        for one in engine.generate(prompts, self.lm.sampling):
            if not self.checks.problem(len(ids[int(one.key)]), one):
                made[int(one.key)] = [i - vocab.speech_offset for i in one.ids]
        return made

    def _encoded(self, texts: Sequence[str], languages: Sequence[str]) -> list[np.ndarray]:
        said = [spoken(text, code) for text, code in zip(texts, languages, strict=True)]
        return self.lm.tokenizer.encode(said)


def _mark(character: str) -> bool:
    """Dashes, quotes, dots, currency: marks that English text has beyond Latin letters."""
    return 0x2010 <= ord(character) <= 0x2044 or 0x20A0 <= ord(character) <= 0x20BF
