"""Small folders of rows whose every id says where it is from."""

from pathlib import Path

import numpy as np

from speechlm.tokens.rows import SUFFIX, index_of, row_writer, write_index
from speechlm.tokens.vocab import Vocab

VOCAB = Vocab(num_text=1000, num_speech=64, text_tokenizer="words", speech_tokenizer="sounds")
ROW_LEN = 16
PAD = VOCAB.control("<|pad|>")


def write_file(path: Path, rows: int, first_id: int = 0, vocab: Vocab = VOCAB, row_len: int = ROW_LEN) -> Path:
    """Row i holds `first_id + i` in two documents of 5 and 8 ids, of the second the last 4 are predicted, and padding."""
    about = {
        "source": path.parent.name,
        "kind": "text",
        "token_rate_hz": 12.5,
        "counts": {"rows": rows, "skipped": {"empty": 1}},
    }
    with row_writer(path, row_len, vocab.hash, len(vocab), about) as writer:
        for i in range(rows):
            ids = np.full(row_len, PAD)
            ids[:13] = first_id + i
            writer.write(ids, np.array([5, 13]), np.array([[1, 5], [9, 13]]))
    return path


def write_folder(
    folder: Path, rows: list[int], first_id: int = 0, vocab: Vocab = VOCAB, row_len: int = ROW_LEN
) -> Path:
    """A finished folder of files with so many rows each; rows are numbered through."""
    starts = np.cumsum([0, *rows]) + first_id
    files = [write_file(folder / f"{i:05d}{SUFFIX}", n, int(starts[i]), vocab, row_len) for i, n in enumerate(rows)]
    write_index(folder, index_of(files))
    return folder
