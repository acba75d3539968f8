"""Text to speech tokens: the model that speaks text corpora without a waveform ever being rendered."""

from collections.abc import Sequence

import torch
from torch import Tensor

from speechlm.engines.base import Prompt, Sampling, Target
from speechlm.engines.checks import SpeechChecks
from speechlm.engines.hugging_face import HuggingFaceEngine
from speechlm.spoken_text import spoken
from speechlm.stages.speech_lm import SpeechLM
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.templates import Template, Writer


class TextToToken(SpeechLM):
    """A `SpeechLM` on rows of the kind `tts`: the loss is on the speech tokens of text-to-speech corpora, and on their end.

    Training is the language model's in every respect; rows are packed by `configs/pack/text_to_token.yaml`, whose template writes
    the text, and a voice where one is wanted, in front of the speech. What is added here is speaking, in the run itself; at scale
    an export of the run speaks through `python -m speechlm.synthesize`.
    """

    @torch.no_grad()
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
        tokenizer = TextTokenizer(self.text_tokenizer)
        writer = Writer(
            "tts",
            template,
            self.vocab,
            lambda text: tokenizer.encode([text])[0].tolist(),
            tokenizer.specials,
            tokenizer.end,
        )
        if voice and not writer.voiced:
            raise ValueError(f"the template has no {{voice}}, so nobody can be asked to speak as {voice!r}")
        ids = tokenizer.encode([spoken(text, language) for text in texts])
        prompts = [
            Prompt(
                str(n), tuple(writer.opening(one, voice).tolist()), checks.max_new(len(one)), checks.min_new(len(one))
            )
            for n, one in enumerate(ids)
        ]
        target = Target(self.vocab.speech_offset, self.vocab.num_speech, writer.closing)
        room = max(len(prompt.ids) + prompt.max_new for prompt in prompts)
        was_training = self.training
        self.eval()
        engine = HuggingFaceEngine(self.lm, target, slots=min(64, len(prompts)), max_length=room)
        made: list[Tensor | None] = [None] * len(texts)
        for one in engine.generate(prompts, sampling):
            if not checks.problem(len(ids[int(one.key)]), one):
                made[int(one.key)] = torch.tensor(one.ids) - self.vocab.speech_offset
        self.train(was_training)
        return made
