"""A text-to-token model in this process reads texts, asked as its rows did, with the checks of bulk synthesis."""

from collections.abc import Sequence
from typing import Any

import torch

from speechlm.engines.base import Prompt, Sampling, Target
from speechlm.engines.checks import SpeechChecks
from speechlm.engines.hugging_face import HuggingFaceEngine
from speechlm.engines.slots import fitting
from speechlm.spoken_text import spoken
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.templates import Template
from speechlm.tokens.vocab import Vocab


@torch.no_grad()
def speak(
    model: Any,
    vocab: Vocab,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    languages: Sequence[str],
    sampling: Sampling,
    template: Template | None = None,
    checks: SpeechChecks = SpeechChecks(),  # noqa: B008 - frozen
    voice: str = "",
    slots: int = 64,
) -> list[list[int] | None]:
    """Speech codes of every text, None where what was generated can not be its speech, or has no room in the model.

    Args:
        model: any causal LM of transformers, in eval mode.
        vocab: of its ids.
        tokenizer: of its text.
        texts: as they are written; numbers and dates are put into words.
        languages: code of each.
        sampling: how ids are drawn.
        template: of the rows the model was trained on; None is the default of `tts`.
        checks: bounds on what is generated.
        voice: who speaks, by a name of the training data, where the template has ``{voice}``.
        slots: texts at once.

    Raises:
        ValueError: the template has ``{voice}`` and there is none, or the other way round.
    """
    writer = tokenizer.writer("tts", template, vocab)
    if voice and not writer.voiced:
        raise ValueError(f"the template has no {{voice}}, so nobody can be asked to speak as {voice!r}")
    ids = tokenizer.encode([spoken(text, language) for text, language in zip(texts, languages, strict=True)])
    asked = (
        Prompt(str(n), tuple(writer.opening(one, voice).tolist()), checks.max_new(len(one)), checks.min_new(len(one)))
        for n, one in enumerate(ids)
    )
    prompts = fitting(asked, model)
    made: list[list[int] | None] = [None] * len(texts)
    if prompts:
        target = Target(vocab.speech_offset, vocab.num_speech, writer.closing)
        room = max(len(prompt.ids) + prompt.max_new for prompt in prompts)
        engine = HuggingFaceEngine(model, target, min(slots, len(prompts)), room)
        for one in engine.generate(prompts, sampling):
            if not checks.problem(len(ids[int(one.key)]), one):
                made[int(one.key)] = [i - vocab.speech_offset for i in one.ids]
    return made
