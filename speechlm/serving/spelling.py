"""Text-tokenizer ids to text as they come: a letter of several ids is given out when it is whole."""

from tokenizers.decoders import DecodeStream

from speechlm.text_tokenizer import TextTokenizer


class Spelling:
    """One text.

    Args:
        tokenizer: of the ids.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._backend, self._stream = tokenizer.backend, DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given = ""

    def push(self, text_id: int) -> str:
        """What a further id adds, maybe nothing."""
        self._ids.append(text_id)
        piece = self._stream.step(self._backend, text_id) or ""
        self._given += piece
        return piece

    def finish(self) -> str:
        """What is left of a letter that never became whole."""
        whole = self._backend.decode(self._ids, skip_special_tokens=True)
        return whole[len(self._given) :] if whole.startswith(self._given) else ""
