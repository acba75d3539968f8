"""Documents of every kind of file, and what is wrong with some of them."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.documents import files_of, read_documents
from datamodules.interleaved import Interleaved, Making, read_interleaved, read_making, write_interleaved
from tests.token_corpus import corpus, tokenized

MAKING = Making("text hash", "speech hash", 12.5, {"model": "tiny", "seed": "3"})
DOCUMENTS = [
    Interleaved("a", [("text", np.array([1, 2, 3])), ("speech", np.array([0, 16383])), ("text", np.array([151_328]))]),
    Interleaved("", []),
    Interleaved("我/b", [("speech", np.array([], np.int64)), ("text", np.array([7]))]),
]


def same(one: Interleaved, other: Interleaved) -> bool:
    """Whether two documents are."""
    pairs = zip(one.parts, other.parts, strict=True)
    return one.id == other.id and all(a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in pairs)


def test_interleaved_documents_come_back(tmp_path: Path):
    assert write_interleaved(tmp_path / "a.safetensors", DOCUMENTS, MAKING) == 3
    assert all(map(same, read_interleaved(tmp_path / "a.safetensors"), DOCUMENTS))
    assert read_making(tmp_path / "a.safetensors") == MAKING
    write_interleaved(tmp_path / "b.safetensors", [], MAKING)
    assert list(read_interleaved(tmp_path / "b.safetensors")) == []


def test_a_flipped_bit_or_a_cut_in_an_interleaved_shard_is_found(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    write_interleaved(path, DOCUMENTS, MAKING)
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    for place in range(header, len(good)):
        damaged = bytearray(good)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.safetensors is cut short, damaged or no shard"):
            list(read_interleaved(path))
    path.write_bytes(good[:-3])
    with pytest.raises(ValueError, match="is cut short, damaged or no shard"):
        list(read_interleaved(path))


def test_parts_are_text_or_speech(tmp_path: Path):
    with pytest.raises(ValueError, match="got 'song'"):
        write_interleaved(tmp_path / "a.safetensors", [Interleaved("a", [("song", np.array([1]))])], MAKING)
    assert not list(tmp_path.iterdir())


LINES = [
    {"id": "one", "text": "first"},
    {"text": "no id"},
    {"id": 3, "text": ""},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_text_is_read_from_lines_of_json_and_bad_lines_are_named(tmp_path: Path, suffix: str):
    data = b"\n".join(
        [*(json.dumps(line).encode() for line in LINES), b"", b'{"id": "x"}', b"{", b'{"text": 5}', b"[1]"]
    )
    if suffix == ".jsonl.zst":
        data = pytest.importorskip("zstandard").compress(data)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    raws = list(read_documents(path, "text"))
    assert [(raw.id, raw.text, raw.problem) for raw in raws[:3]] == [
        ("one", "first", ""), (f"{path}:2", "no id", ""), ("3", "", ""),
    ]  # fmt: skip
    assert [(raw.id, raw.problem) for raw in raws[3:]] == [(f"{path}:{n}", "bad line") for n in (5, 6, 7, 8)]


def test_a_compressed_file_cut_short_is_refused(tmp_path: Path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(LINES[0]).encode() * 100)[:-20])
    with pytest.raises(ValueError, match="is cut short or damaged"):
        list(read_documents(path, "text"))


def test_text_is_read_from_parquet(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["first", None], "id": ["a", "b"], "score": [1.0, 2.0]}), path)
    assert [(raw.id, raw.text) for raw in read_documents(path, "text")] == [("a", "first"), ("b", "")]
    with pytest.raises(ValueError, match="has no column 'words', only"):
        list(read_documents(path, "text", "words"))


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([["text", "words"], ["speech", [1, 2]]], ""),
        ([["text", [5, 6]]], ""),
        ([["song", [1]]], "bad line"),
        ([["speech", "abc"]], "bad line"),
        ([["speech", [1.5]]], "bad line"),
        ([["speech", [[1]]]], "bad line"),
        (7, "bad line"),
    ],
)
def test_interleaved_documents_can_be_written_by_hand(tmp_path: Path, parts: object, problem: str):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"id": "a", "parts": parts}))
    [raw] = read_documents(path, "interleaved")
    assert raw.problem == problem
    if not problem:
        assert [[kind, value if isinstance(value, str) else value.tolist()] for kind, value in raw.parts] == parts


def test_cuts_bring_their_tokens_and_transcripts_and_a_damaged_shard_is_refused(tmp_path: Path):
    folder = tokenized(tmp_path, corpus(tmp_path / "corpus"))
    files = files_of([str(folder)], "asr")
    raws = [raw for file in files for raw in read_documents(file, "asr")]
    assert len(raws) == 23 and len(files) == 5
    assert all(raw.text and len(raw.speech) and not raw.problem for raw in raws)
    tar = next(folder.rglob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"not the .* written"):
        [raw for file in files for raw in read_documents(file, "asr")]


def test_cuts_without_tokens_say_so(tmp_path: Path):
    raws = list(read_documents(corpus(tmp_path), "speech"))
    assert {raw.problem for raw in raws} == {"no tokens"} and "carries no speech_tokens" in raws[0].detail


def test_files_are_found_in_order_and_once(tmp_path: Path):
    for name in ("b/2.jsonl", "b/1.jsonl.gz", "a.jsonl", ".hidden.jsonl", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in files_of([str(tmp_path)], "text")] == ["a.jsonl", "1.jsonl.gz", "2.jsonl"]
    with pytest.raises(ValueError, match=r"listed twice: .*a\.jsonl"):
        files_of([str(tmp_path), str(tmp_path / "a.jsonl")], "text")
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        files_of([str(tmp_path / "c")], "text")
    with pytest.raises(ValueError, match=r"nothing that documents of kind 'text' are read from \(\.jsonl"):
        files_of([str(tmp_path / "notes.txt")], "text")
