"""Text to text-tokenizer ids, such that nothing in a text can become a control token."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from speechlm.hub_tokenizer import load_tokenizer
from speechlm.tokens.templates import Kind, Template, Writer
from speechlm.tokens.vocab import Vocab


class TextTokenizer:
    """A Hugging Face tokenizer, for text of strangers.

    A tokenizer reads the names of its special and added tokens, such as ``<|endoftext|>``, wherever a text has them, and gives
    the token's id. Here they are only text: a text is cut inside of every such name before it is encoded, so the ids are those of
    the name's letters. No code of a model's folder is run.

    Args:
        path: folder with a tokenizer.json, or a name on the hub.

    Raises:
        ValueError: there is no tokenizer.json.
    """

    def __init__(self, path: str | Path) -> None:
        tokenizer = load_tokenizer(path)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ValueError(f"{path} has no tokenizer.json, only a slow tokenizer; convert it with transformers first")
        self.backend = tokenizer.backend_tokenizer
        self.size = len(tokenizer)  # of its id space, added tokens included; a model's embedding may have more rows
        self.end: int | None = tokenizer.eos_token_id
        added = {
            token.content: i for i, token in tokenizer.added_tokens_decoder.items() if len(token.content.strip()) > 1
        }
        self.specials: dict[str, int] = dict(sorted(added.items()))
        self._is_special = np.zeros(max([self.size, *(i + 1 for i in added.values())]), bool)
        self._is_special[list(added.values())] = True
        # A vocabulary with speech has 16,000 names: one pattern of all of them would be tried name by name at every "<".
        self._starts = re.compile(
            "[" + "".join(re.escape(start) for start in sorted({name[0] for name in added})) + "]"
        )
        self._lengths = sorted({len(name) for name in added})

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell this tokenizer from every other; what `Vocab.text_tokenizer` holds."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Texts to (L,) int64 ids each, without any token that the tokenizer would put around them.

        Characters that no text has (lone surrogates) become U+FFFD.

        Raises:
            ValueError: a text still gave a special token, as one may that becomes a name only by the tokenizer's normalisation.
        """
        pieces = [self._cut(_mended(text)) for text in texts]
        encoded = self.backend.encode_batch_fast([piece for cut in pieces for piece in cut], add_special_tokens=False)
        ids = iter(encoded)
        made = [np.array([i for _ in cut for i in next(ids).ids], np.int64) for cut in pieces]
        for text, one in zip(texts, made, strict=True):
            special = self._is_special[one]
            if special.any():
                raise ValueError(f"a text gives the special token {int(one[special][0])}: {text[:80]!r}")
        return made

    def ids_of(self, text: str) -> list[int]:
        """`encode` of one text."""
        ids: list[int] = self.encode([text])[0].tolist()
        return ids

    def writer(self, kind: Kind, template: Template | None, vocab: Vocab, boundaries: bool = True) -> Writer:
        """Who writes documents of a kind in this tokenizer's ids; the same for training rows and for generation."""
        return Writer(kind, template, vocab, self.ids_of, self.specials, self.end, boundaries)

    def decode(self, ids: Sequence[np.ndarray]) -> list[str]:
        """(L,) ids each to texts, special tokens by their names.

        Raises:
            ValueError: an id is outside the tokenizer.
        """
        for one in ids:
            if len(one) and not 0 <= int(one.min()) <= int(one.max()) < self.size:
                raise ValueError(f"ids lie in [0, {self.size}), got {int(one.min())} to {int(one.max())}")
        return self.backend.decode_batch([one.tolist() for one in ids], skip_special_tokens=False)

    def _cut(self, text: str) -> list[str]:
        """The text in pieces, none of which has a special token's name in it."""
        if not self.specials:
            return [text]
        pieces, begin = [], 0
        for found in self._starts.finditer(text):
            start = found.start()
            if start >= begin and any(text[start : start + length] in self.specials for length in self._lengths):
                pieces.append(text[begin : start + 1])
                begin = start + 1
        return [*pieces, text[begin:]]


def _mended(text: str) -> str:
    """The text, without lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
