"""Chat templates by the name that a bundle gives."""

from collections.abc import Callable

from speechlm.serving.template import ChatTemplate, PlainChat
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.vocab import Vocab

Opener = Callable[[Vocab, TextTokenizer, int, int], ChatTemplate]
#: Text and speech in turns, speech alone, text alone; the numbers of a block are the bundle's where there is a choice.
TEMPLATES: dict[str, Opener] = {
    "plain": lambda vocab, _, text, speech: PlainChat(vocab, text, speech),
    "plain_speech": lambda vocab, *_: PlainChat(vocab, 0, 1),
    "plain_text": lambda vocab, *_: PlainChat(vocab, 1, 0),
}


def open_template(name: str, vocab: Vocab, text: TextTokenizer, text_block: int, speech_block: int) -> ChatTemplate:
    """A template for a vocabulary.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in TEMPLATES:
        raise ValueError(f"there is no chat template {name!r}; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[name](vocab, text, text_block, speech_block)
