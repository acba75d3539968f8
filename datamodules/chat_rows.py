"""Spoken dialogues as rows: what the user did, speak or type, how replies are made, and which of their ids are learnt."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.dialogues import Dialogue, Said, read_dialogues
from datamodules.document_rows import Texts, encode_all
from datamodules.documents import Unusable
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.chat_templates import Chat, Loss, Turn, named_template
from speechlm.tokens.templates import Written
from speechlm.tokens.vocab import Vocab


@dataclass(frozen=True)
class ChatForm:
    """How dialogues are written.

    The two-copy scheme of GLM-4-Voice (arXiv 2412.02612) is two sources of the same dialogues, one with `loss: text` and one with
    `loss: speech`, and epochs of their own in the training's config.

    Args:
        template: plain, plain_speech, plain_text, chatml or glm4voice.
        text_block: ids of text in a block of a reply; null is the template's.
        speech_block: ids of speech in a block; null is the template's.
        user: whether the user speaks or types.
        loss: what of the replies is predicted: all, text or speech.
    """

    template: str = "plain"
    text_block: int | None = None
    speech_block: int | None = None
    user: Literal["speech", "text"] = "speech"
    loss: Loss = "all"


class ChatScribe:
    """Writes dialogues as sequences of ids.

    Args:
        form: see `ChatForm`.
        vocab: of the result.
        tokenizer: of text.
        row_len: longer ones are not used.

    Raises:
        ValueError: there is no such template, or it names tokens that do not exist.
    """

    def __init__(self, form: ChatForm, vocab: Vocab, tokenizer: TextTokenizer, row_len: int) -> None:
        self.form, self.tokenizer, self.row_len = form, tokenizer, row_len
        template = named_template(form.template, form.text_block, form.speech_block)
        self.chat = Chat(template, vocab, tokenizer.ids_of, tokenizer.specials)

    def read(self, path: Path) -> Iterator[Dialogue]:
        """Dialogues of a file."""
        return read_dialogues(path)

    def encoded(self, documents: list[Dialogue]) -> list[Texts]:
        """See `Scribe.encoded`."""
        return encode_all(self.tokenizer, [[said.text for said in one.turns] for one in documents])

    def write(self, document: Dialogue, texts: Texts) -> Written:
        """A dialogue's sequence, up to its last reply.

        Raises:
            Unusable: it has none.
        """
        if document.problem:
            raise Unusable("bad line", document.problem)
        if texts is None:
            raise Unusable("special token", "a turn gives a special token of the text tokenizer")
        said = list(document.turns)
        while said and said[-1].role != "assistant":
            said.pop()
        if not said:
            raise Unusable("no reply")
        try:
            turns = [self._turn(one, text) for one, text in zip(said, texts, strict=False)]
            written = self.chat.conversation(self.chat.instructed(turns), self.form.loss)
        except ValueError as error:
            raise Unusable("ids do not fit", str(error)) from None
        if len(written.ids) > self.row_len:
            raise Unusable("dialogue longer than a row", f"{len(written.ids)} ids")
        return written

    def _turn(self, said: Said, text: np.ndarray) -> Turn:
        if said.role == "assistant":
            if self.chat.speech_block and not len(said.speech):
                raise Unusable("no speech of a reply")
            return self.chat.reply(text, said.speech)
        if said.role == "user" and self.form.user == "speech":
            if not len(said.speech):
                raise Unusable("no speech of the user")
            return Turn("user", (("speech", said.speech),))
        return Turn(said.role, (("text", text),))
