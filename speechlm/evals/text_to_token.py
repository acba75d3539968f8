"""The text-to-token model: does its speech say the text, and how far are its tokens from a recording's? VCTK in the paper."""

from speechlm.evals.parts import Parts
from speechlm.evals.spoken_texts import SpokenTexts


class TextToTokens(SpokenTexts):
    """Texts spoken by the text-to-token model; arguments as for `SpokenTexts`."""

    def speaker(self) -> tuple[str, ...]:
        """The text-to-token model, and the tokenizer for recordings."""
        return ("text_to_token", "codes")

    def speak(self, texts: list[str], languages: list[str], parts: Parts) -> list[list[int] | None]:
        """As in bulk synthesis, with its checks."""
        return parts.text_to_token.speak(texts, languages)
