"""Text to speech tokens: the model that speaks text corpora without a waveform ever being rendered."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from speechlm.engines.base import Sampling
from speechlm.engines.checks import SpeechChecks
from speechlm.engines.speaking import speak
from speechlm.stages.speech_lm import SpeechLM
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.templates import Template


class TextToToken(SpeechLM):
    """A `SpeechLM` on rows of the kind `tts`: the loss is on the speech tokens of text-to-speech corpora, and on their end.

    Training is the language model's in every respect; rows are packed by `configs/pack/text_to_token.yaml`, whose template writes
    the text, and a voice where one is wanted, in front of the speech. What is added here is speaking, in the run itself; at scale
    an export of the run speaks through `python -m speechlm.synthesize`.

    Args:
        predict: "speech": the softmax in training is over control and speech tokens, as when the model speaks, and the head's
            rows of text cost nothing; the template's target may have no text then, nor {end}. "all": over the whole vocabulary.
        args: of `SpeechLM`.
        kwargs: of `SpeechLM`.
    """

    def __init__(self, *args: Any, predict: Literal["all", "speech"] = "all", **kwargs: Any) -> None:
        self.predict = predict
        super().__init__(*args, **kwargs)

    def first_predicted(self) -> int:
        """Behind text, where speech alone is predicted."""
        return self.vocab.num_text if self.predict == "speech" else 0

    def speak(
        self,
        texts: Sequence[str],
        language: str = "en",
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        template: Template | None = None,
        checks: SpeechChecks = SpeechChecks(),  # noqa: B008
        voice: str = "",
    ) -> list[Tensor | None]:
        """Texts to (T,) speech tokens each, None where what was generated can not be the speech of the text.

        Args:
            texts: as they are written; numbers and dates are put into words.
            language: of the texts.
            sampling: how ids are drawn.
            template: of the rows the model was trained on; None is the default of `tts`.
            checks: bounds on what is generated.
            voice: who speaks, by a name of the training data, where the template has ``{voice}``.

        Raises:
            ValueError: the template has ``{voice}`` and there is none, or the other way round.
        """
        was_training = self.training
        self.eval()
        tokenizer = TextTokenizer(self.text_tokenizer)
        made = speak(self.lm, self.vocab, tokenizer, texts, [language] * len(texts), sampling, template, checks, voice)
        self.train(was_training)
        return [None if one is None else torch.tensor(one) for one in made]
