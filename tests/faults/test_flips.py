"""Two hundred random bits flipped in everything we write that training reads again: all found, none by chance."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.interleaved import Interleaved, Making, read_interleaved, write_interleaved
from datamodules.sealed import read_sealed, write_sealed
from datamodules.token_folder import TokenFolder
from speechlm.tokens.rows import RowFile
from tests.row_corpus import write_file
from tests.token_corpus import corpus, tokenized

FLIPS = 200


def found(path: Path, read: Callable[[], Any], seed: int, errors: tuple[type[Exception], ...] = (ValueError,)) -> int:
    """How many of the flips, at random places of a file, reading it finds."""
    whole, rng, count = path.read_bytes(), np.random.default_rng(seed), 0
    for _ in range(FLIPS):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            read()
        except errors:
            count += 1
    path.write_bytes(whole)
    read()
    return count


def store_rows(folder: Path) -> tuple[Path, Callable[[], Any]]:
    path = write_file(folder / "a.rows", 40)

    def read() -> None:
        RowFile(path, verify=True)

    return path, read


def store_documents(folder: Path) -> tuple[Path, Callable[[], Any]]:
    making = Making(text_tokenizer="t", speech_tokenizer="s", token_rate_hz=12.5)
    documents = [Interleaved(f"d{i}", [("text", np.arange(20) + i), ("speech", np.arange(9))]) for i in range(20)]
    write_interleaved(folder / "a.safetensors", documents, making)
    return folder / "a.safetensors", lambda: list(read_interleaved(folder / "a.safetensors"))


def store_seals(folder: Path) -> tuple[Path, Callable[[], Any]]:
    write_sealed(folder / "a.json", {"cuts": list(range(30)), "text": "naïve", "share": 0.25})
    return folder / "a.json", lambda: read_sealed(folder / "a.json")


def store_tokens(folder: Path) -> tuple[Path, Callable[[], Any]]:
    made = TokenFolder.find(tokenized(folder, corpus(folder)))
    assert made is not None
    return made.tokens_path(1), lambda: made.verify(1)


@pytest.mark.parametrize(
    "store", [store_rows, store_documents, store_seals, store_tokens], ids=lambda f: f.__name__[6:]
)
def test_all_of_two_hundred_flipped_bits_are_found(
    store: Any, tmp_path: Path, record_property: Callable[[str, object], None]
):
    path, read = store(tmp_path)
    assert found(path, read, seed=len(store.__name__)) == FLIPS
    for name, value in {"flips": FLIPS, "injections": FLIPS, "store": store.__name__[6:]}.items():
        record_property(name, value)
