"""The embedded rows are whole and of the vocabulary beside them."""

from pathlib import Path

import pytest

from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.rows import RowFolder
from speechlm.tokens.vocab import Vocab

ASSETS = Path(__file__).resolve().parents[1] / "assets"
ROWS = ASSETS / "tiny-rows"


@pytest.mark.parametrize(
    "name", ["text_train", "interleaved_train", "text_heldout", "interleaved_heldout", "chat_train", "chat_heldout"]
)
def test_rows_are_whole_and_of_their_vocabulary(name: str):
    vocab = Vocab.load(ROWS / "vocab.json")
    folder = RowFolder(ROWS / name, verify=True)
    assert (
        folder.vocab_hash == vocab.hash
        and vocab.text_tokenizer == TextTokenizer(ASSETS / "whisper-nano-en").fingerprint
    )
    speech = [int(vocab.is_speech(folder.row(i).ids).sum()) for i in range(len(folder))]
    assert (sum(speech) > 0) == name.startswith(("interleaved", "chat"))
