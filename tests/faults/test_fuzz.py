"""Every parser of ours is given mutated and made-up bytes: it reads or refuses them, and never runs, hangs or falls over.

`FUZZ_CASES` is how many for each; 60 unless told, 5000 took the times in docs/results.md.
"""

import contextlib
import gzip
import io
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed.checkpoint as dcp
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from callbacks.jsonl import read_metrics
from datamodules.cuts import read_cuts
from datamodules.documents import read_documents
from datamodules.interleaved import Interleaved, Making, read_interleaved, write_interleaved
from datamodules.recordings import BadRecording, load_recording
from datamodules.sealed import read_sealed, write_sealed
from datamodules.tar_arrays import TarNpyReader
from datamodules.tars import walk
from datamodules.token_folder import TokenFolder
from speechlm import runs, shards
from speechlm.engines.base import Prompt, Target
from speechlm.engines.sglang import BadAnswer, generation
from speechlm.nn.safe_pt import read_pt
from speechlm.safe_yaml import read_yaml
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.clock import Clock
from speechlm.tokens.rows import RowFile, RowFolder
from speechlm.tokens.vocab import Vocab
from tests.audio_corpus import cut_of, make_corpus, tone
from tests.row_corpus import VOCAB, write_file, write_folder
from tests.text_corpus import make_tokenizer
from tests.token_corpus import corpus, tokenized

CASES = int(os.environ.get("FUZZ_CASES", "60"))
LIMIT_SEC = 10.0  # on a machine with other work; a case takes milliseconds
REFUSED = (ValueError, OSError, EOFError, BadRecording)
DOES_SOMETHING = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "shutil.rmtree",
}
TOKENS = [b"null", b"-1", b"1e999", b"NaN", b"{}", b"[]", b'""', b"\x00", b"\xff\xff\xff\xff", b"../../x", b"pipe:touch x",
          b"9" * 40, b"\xed\xa0\x80", b"!!python/object:os.system", b"*a", b"true"]  # fmt: skip

_seen: list[str] = []
_watching = False


def _audit(event: str, _: Any) -> None:
    if _watching and event in DOES_SOMETHING:
        _seen.append(event)


sys.addaudithook(_audit)


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Fails where a program, a connection or another process was started, or it took too long."""
    global _watching
    _seen.clear()
    _watching, begun = True, time.monotonic()
    try:
        yield
    finally:
        _watching = False
    assert not _seen, _seen
    assert time.monotonic() - begun < LIMIT_SEC


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A few changes of bytes, places as shares of the length, so that they fit any file."""
    kinds = st.sampled_from(["flip", "cut", "drop", "double", "token", "swap", "zero"])
    share = st.floats(0, 1, exclude_max=True)
    steps = draw(st.lists(st.tuples(kinds, share, share, st.integers(0, 255)), min_size=1, max_size=6))

    def mutate(data: bytes) -> bytes:
        for kind, first, second, value in steps:
            at, to = sorted((int(first * len(data)), int(second * len(data))))
            piece = data[at : min(to, at + 64) + 1]
            if kind == "flip" and data:
                data = data[:at] + bytes([data[at] ^ (value or 1)]) + data[at + 1 :]
            elif kind == "cut":
                data = data[:to]
            elif kind == "drop":
                data = data[:at] + data[at + len(piece) :]
            elif kind == "double":
                data = data[:at] + piece * (value % 4 + 2) + data[at + len(piece) :]
            elif kind == "token":
                data = data[:at] + TOKENS[value % len(TOKENS)] + data[at + value % 5 :]
            elif kind == "swap":
                data = data[:at] + piece[::-1] + data[at + len(piece) :]
            else:
                data = data[:at] + bytes(len(piece)) + data[at + len(piece) :]
        return data

    return mutate


Reader = tuple[Path, Callable[[], Any]]  # the file that is changed, and what reads it


def manifest(folder: Path) -> Reader:
    path = make_corpus(folder, 3)
    return path, lambda: [load_recording(cut, Clock()) for cut in read_cuts(path)]


def packed_manifest(folder: Path) -> Reader:
    path = make_corpus(folder, 3).with_suffix(".jsonl.gz")
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes(), mtime=0))
    path.with_suffix("").unlink()
    return path, lambda: list(read_cuts(path))


def shar(folder: Path) -> Reader:
    (folder / "shar").mkdir()
    cuts = read_cuts(make_corpus(folder, 3))
    cuts.to_shar(folder / "shar", fields={"recording": "flac"}, shard_size=10)
    return folder / "shar" / "recording.000000.tar", lambda: [c.id for c in read_cuts(folder / "shar")]


def tar(folder: Path) -> Reader:
    shar(folder)
    path = folder / "shar" / "recording.000000.tar"
    return path, lambda: list(walk(path))


def audio(folder: Path) -> Reader:
    path = folder / "a.flac"
    soundfile.write(path, tone(0.3), 16_000)
    cut = cut_of(path)
    return path, lambda: load_recording(cut, Clock())


def wave(folder: Path) -> Reader:
    path = folder / "a.wav"
    soundfile.write(path, tone(0.1), 16_000)
    cut = cut_of(path)
    return path, lambda: load_recording(cut, Clock())


def rows(folder: Path) -> Reader:
    path = write_file(folder / "a.rows", 5)

    def read() -> None:
        file = RowFile(path, verify=True)
        [file.row(i) for i in range(len(file))]

    return path, read


def index(folder: Path) -> Reader:
    write_folder(folder / "rows", [3, 2])
    return folder / "rows" / "index.json", lambda: RowFolder(folder / "rows").row(4)


def seal(folder: Path) -> Reader:
    write_sealed(folder / "a.json", {"a": [1, 2], "b": "x"})
    return folder / "a.json", lambda: read_sealed(folder / "a.json")


def token_header(folder: Path) -> Reader:
    out = tokenized(folder, corpus(folder))

    def read() -> None:
        found = TokenFolder.find(out)
        assert found is not None
        found.verify(0)

    return out / "tokenize.json", read


def documents(folder: Path) -> Reader:
    path = folder / "a.safetensors"
    making = Making(text_tokenizer="t", speech_tokenizer="s", token_rate_hz=12.5)
    write_interleaved(path, [Interleaved("d", [("text", np.arange(9)), ("speech", np.arange(5))])], making)
    return path, lambda: list(read_interleaved(path))


def text_lines(folder: Path) -> Reader:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "text": "some words here"}) + "\n" for i in range(5)))
    return path, lambda: list(read_documents(path, "text"))


def part_lines(folder: Path) -> Reader:
    path = folder / "a.jsonl"
    parts = [["text", "some words"], ["speech", [1, 2, 3]], ["text", [5, 6]]]
    path.write_text("".join(json.dumps({"id": str(i), "parts": parts}) + "\n" for i in range(5)))
    return path, lambda: list(read_documents(path, "interleaved"))


def packed_lines(folder: Path) -> Reader:
    text_lines(folder)
    path = folder / "b.jsonl.gz"
    path.write_bytes(gzip.compress((folder / "a.jsonl").read_bytes(), mtime=0))
    return path, lambda: list(read_documents(path, "text"))


def vocabulary(folder: Path) -> Reader:
    VOCAB.save(folder / "vocab.json")
    return folder / "vocab.json", lambda: Vocab.load(folder / "vocab.json")


def checkpoint(folder: Path) -> Reader:
    path = folder / "a.ckpt"
    torch.save({"state_dict": {"w": torch.randn(8)}, "global_step": 3, "epoch": 0}, path)
    return path, lambda: read_pt(path, mmap=True)


def legacy_weights(folder: Path) -> Reader:
    path = folder / "a.pt"
    torch.save({"w": torch.randn(8), "v": torch.arange(3)}, path, _use_new_zipfile_serialization=False)
    return path, lambda: read_pt(path)


def metadata(folder: Path) -> Reader:
    dcp.save({"state_dict.w": torch.randn(8)}, checkpoint_id=folder, no_dist=True)
    return folder / ".metadata", lambda: shards.read_metadata(folder)


def config(folder: Path) -> Reader:
    content = {"name": "x", "model": {"class_path": "a.B", "init_args": {"lr": 1e-3, "parts": [1, 2, {"a": None}]}}}
    (folder / "config.yaml").write_text("base: &b {x: 1}\nother: *b\n" + yaml.safe_dump(content))
    return folder / "config.yaml", lambda: (runs.read_config(folder), read_yaml(folder / "config.yaml"))


def array(folder: Path) -> Reader:
    data = io.BytesIO()
    np.save(data, np.arange(40, dtype=np.uint16))
    (folder / "a.tar").write_bytes(bytes(512) + data.getvalue())
    size = len(data.getvalue())
    return folder / "a.tar", lambda: TarNpyReader(str(folder / "a.tar")).read(f"512:{size}")


def metrics(folder: Path) -> Reader:
    lines = [{"step": i, "time": 1.0, "train/loss": 2.5 / (i + 1)} for i in range(6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "metrics.jsonl", lambda: read_metrics(folder)


READERS = [
    manifest, packed_manifest, shar, tar, audio, wave, rows, index, seal, token_header, documents, text_lines, part_lines,
    packed_lines, vocabulary, checkpoint, legacy_weights, metadata, config, array, metrics,
]  # fmt: skip


@pytest.mark.parametrize("make", READERS, ids=lambda make: make.__name__)
def test_changed_bytes_are_read_or_refused(make: Callable[[Path], Reader], tmp_path: Path, record_property: Any):
    path, read = make(tmp_path)
    whole = path.read_bytes()
    read()

    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        derandomize=CASES == 60,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations(), st.randoms(use_true_random=False))
    @example(lambda data: b"", random.Random(0))
    @example(lambda data: data[: len(data) // 2], random.Random(0))
    @example(lambda data: b"\xff" * 100, random.Random(0))
    @example(lambda data: b"[" * 2000, random.Random(0))
    def fuzz(mutate: Callable[[bytes], bytes], _: Any) -> None:
        path.write_bytes(mutate(whole))
        with nothing_runs(), contextlib.suppress(*REFUSED):
            read()

    fuzz()
    record_property("injections", CASES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=CASES * 4, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(JSON)
def test_whatever_a_server_answers_is_a_generation_or_refused(answer: Any):
    prompt, target = Prompt("k", (1, 2), 5, 1), Target(100, 32, 7)
    shaped = {"output_ids": answer, "meta_info": {"finish_reason": {"type": "stop"}}}
    for one in (answer, shaped, {"output_ids": [101], "meta_info": answer}):
        try:
            made = generation(prompt, one, target)
        except BadAnswer:
            continue
        assert all(i in target for i in made.ids)


PIECES = ["<|endoftext|>", "<|user|>", "<|", "|>", "<think>", "\ud800", "\0"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer(make_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@settings(max_examples=CASES * 2, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text(max_size=8) | st.sampled_from(PIECES), max_size=8))
def test_no_text_becomes_a_special_token(tokenizer: TextTokenizer, pieces: list[str]):
    try:
        (ids,) = tokenizer.encode(["".join(pieces)])
    except ValueError:
        return
    assert not set(ids.tolist()) & set(tokenizer.specials.values())
