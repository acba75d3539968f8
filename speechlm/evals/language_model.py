"""A causal language model of speech and text as tasks ask for it: likelihoods, text, speech, and turns of both."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from speechlm.engines.base import Prompt, Sampling, Target
from speechlm.engines.checks import SpeechChecks
from speechlm.engines.hugging_face import HuggingFaceEngine
from speechlm.engines.slots import fitting
from speechlm.engines.speaking import speak
from speechlm.evals.likelihood import PackedLikelihood
from speechlm.evals.parts import Likelihood, Piece, Scorable
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.templates import Template
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
        self.likelihoods_of = PackedLikelihood(model, vocab, row)
        self._foreign: list[int] | None = None

    @property
    def plain_tokenizer(self) -> str:
        """Name or folder of the text tokenizer, for lm-eval."""
        return self.text_tokenizer

    def encode(self, text: str) -> list[int]:
        """Text-tokenizer ids."""
        return self.tokenizer.ids_of(text)

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
        # Without room for a word it is as if the end never came.
        asked = fitting((Prompt(str(n), tuple(ids), max_new) for n, ids in enumerate(prompts)), self.plain_model)
        made: dict[str, tuple[list[int], bool]] = {}
        if asked:
            room = max(len(prompt.ids) + prompt.max_new for prompt in asked)
            engine = HuggingFaceEngine(self.plain_model, target, min(self.slots, len(asked)), room, banned)
            made = {one.key: (list(one.ids), one.finish == "stop") for one in engine.generate(asked, self.sampling)}
        return [made.get(str(n), ([], False)) for n in range(len(prompts))]

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
        checks: bounds on what is generated.
    """

    def __init__(self, lm: EvaluatedLM, checks: SpeechChecks = SpeechChecks()) -> None:  # noqa: B008
        self.lm, self.checks = lm, checks

    def speak(
        self, texts: Sequence[str], languages: Sequence[str], template: Template | None = None, voice: str = ""
    ) -> list[list[int] | None]:
        """Codes, None where what came can not be the speech of the text.

        Raises:
            ValueError: the template has {voice} and there is none, or the other way round.
        """
        lm = self.lm
        return speak(
            lm.plain_model,
            lm.vocab,
            lm.tokenizer,
            texts,
            languages,
            lm.sampling,
            template,
            self.checks,
            voice,
            lm.slots,
        )


def _mark(character: str) -> bool:
    """Dashes, quotes, dots, currency: marks that English text has beyond Latin letters."""
    return 0x2010 <= ord(character) <= 0x2044 or 0x20A0 <= ord(character) <= 0x20BF
