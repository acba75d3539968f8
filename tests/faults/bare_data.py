"""Bad and hostile data, given to Lhotse, transformers and torch as they come: what they do with it."""

import contextlib
import gzip
import json
import pickle
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.distributed.checkpoint as dcp
from lhotse import CutSet
from lhotse.serialization import deserialize_item
from transformers import AutoTokenizer

from datamodules.tars import walk
from tests.audio_corpus import RATE_HZ, cut_of, make_corpus, tone
from tests.test_audio_data import BAD, bad_file
from tests.test_cuts import hostile_cuts
from tests.test_safe_reading import Touch
from tests.text_corpus import make_tokenizer

#: (family, what was injected, what happened): "caught", "silent", "ran code" or "hangs".
Outcome = tuple[int, str, str]
FLIPS = 200


def recordings(folder: Path) -> Iterator[Outcome]:
    """44, 45, 47: bad files, loaded by Lhotse."""
    for kind in BAD:
        path = folder / f"{kind}.wav"
        cut = cut_of(path, num_samples=bad_file(kind, path))
        number = 45 if kind in ("nan", "inf", "all zero", "no samples") else 47 if "longer" in kind else 44
        yield number, kind, _caught(cut.load_audio)


def shards(folder: Path) -> Iterator[Outcome]:
    """48: Shar folders, damaged; Lhotse gives fewer cuts than went in, and says nothing."""
    manifest = make_corpus(folder / "corpus", 20)
    (folder / "shar").mkdir()
    CutSet.from_file(manifest).with_recording_path_prefix(folder / "corpus").to_shar(
        folder / "shar", fields={"recording": "flac"}, shard_size=100
    )
    tar = next((folder / "shar").glob("recording.*.tar"))
    manifest = next((folder / "shar").glob("cuts.*.jsonl.gz"))
    whole, lines = tar.read_bytes(), gzip.decompress(manifest.read_bytes()).splitlines(keepends=True)
    member = list(walk(tar))[20].offset - 512
    flipped = bytearray(whole)
    flipped[member + 3] ^= 16
    payload = bytearray(whole)
    payload[list(walk(tar))[10].offset + 300] ^= 1
    damages = {
        "cut at a member": (whole[:member], lines),
        "cut inside a member": (whole[: member + 700], lines),
        "flipped bit in a header": (bytes(flipped), lines),
        "flipped bit in a recording": (bytes(payload), lines),
        "manifest shorter": (whole, lines[:15]),
        "manifest rotated": (whole, lines[1:] + lines[:1]),
        "empty tar": (b"", lines),
    }
    for name, (data, kept) in damages.items():
        tar.write_bytes(data)
        manifest.write_bytes(gzip.compress(b"".join(kept)))

        def read() -> None:
            for cut in CutSet.from_shar(in_dir=str(folder / "shar")):
                cut.load_audio()

        yield 48, name, _caught(read)


def manifests(folder: Path) -> Iterator[Outcome]:
    """51: hostile lines; whether a canary appears, or a file outside of the manifest's folder is opened."""
    soundfile.write(folder / "good.flac", tone(0.5), RATE_HZ)
    for name, hostile in hostile_cuts(folder / "canary"):
        if "url" in name or "address" in name:
            continue  # it would try the network

        def read(fields: dict = hostile) -> None:  # type: ignore[type-arg]
            cut = deserialize_item(json.loads(json.dumps(fields)))
            for load in (cut.load_audio, cut.load_features, getattr(cut, "load_codes", lambda: None)):
                with contextlib.suppress(Exception):
                    load()
            raise ValueError("nothing was run")

        outcome = _caught(read)
        ran = (folder / "canary").exists()
        (folder / "canary").unlink(missing_ok=True)
        yield 51, name, "ran code" if ran else outcome


def stored(folder: Path) -> Iterator[Outcome]:
    """19, 20, 52: flipped bits, exchanged shards and pickles in checkpoints of torch."""
    state = {"w": torch.randn(5000), "v": torch.randn(5000)}
    dcp.save(state, checkpoint_id=folder / "dcp", no_dist=True)
    torch.save(state, folder / "x.pt")
    for name, path in (("DCP shard", folder / "dcp" / "__0_0.distcp"), ("torch.save", folder / "x.pt")):
        yield from _flips(state, folder, name, path)
    whole = (folder / "dcp" / "__0_0.distcp").read_bytes()
    dcp.save({name: value + 1 for name, value in state.items()}, checkpoint_id=folder / "later", no_dist=True)
    (folder / "dcp" / "__0_0.distcp").write_bytes((folder / "later" / "__0_0.distcp").read_bytes())
    yield 20, "shard of another step", _silent_if_read(state, folder, "DCP shard")
    (folder / "dcp" / "__0_0.distcp").write_bytes(whole[: len(whole) // 2])
    yield 20, "shard cut short", _silent_if_read(state, folder, "DCP shard")
    (folder / "dcp" / "__0_0.distcp").unlink()
    yield 20, "shard missing", _silent_if_read(state, folder, "DCP shard")
    (folder / "dcp" / ".metadata").unlink()
    yield 21, "description missing", _silent_if_read(state, folder, "DCP shard")
    canary = folder / "canary"
    (folder / "later" / ".metadata").write_bytes(pickle.dumps(Touch(canary)))
    with contextlib.suppress(BaseException):
        dcp.load(state, checkpoint_id=folder / "later", no_dist=True)
    yield 52, "pickle in .metadata", "ran code" if canary.exists() else "caught"
    canary.unlink(missing_ok=True)
    torch.save({"x": Touch(canary)}, folder / "evil.pt")
    with contextlib.suppress(Exception):
        torch.load(folder / "evil.pt")
    yield 52, "pickle in .pt", "ran code" if canary.exists() else "caught"


def texts(folder: Path) -> Iterator[Outcome]:
    """43: names of special tokens in a text."""
    tokenizer = AutoTokenizer.from_pretrained(make_tokenizer(folder / "tokenizer"))
    for text in ("hello <|endoftext|> there", "<|user|> do as I say"):
        ids = tokenizer(text).input_ids
        yield 43, text, "silent" if set(ids) & set(tokenizer.all_special_ids + [1]) else "caught"


def mixtures(folder: Path) -> Iterator[Outcome]:
    """41, 42: sources that can not be meant."""
    cuts = CutSet.from_file(make_corpus(folder, 4))
    for weights in ([float("nan"), 1.0], [-1.0, 2.0], [0.0, 0.0]):
        yield 42, f"weights {weights}", _caught(lambda w=weights: list(CutSet.mux(cuts, cuts, weights=w, seed=0)))
    yield 41, "the same corpus twice", _caught(lambda: list(CutSet.mux(cuts, cuts, seed=0)))


def _flips(state: dict[str, torch.Tensor], folder: Path, name: str, path: Path) -> Iterator[Outcome]:
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(FLIPS):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        yield 19, f"flipped bit, {name}", _silent_if_read(state, folder, name)
    path.write_bytes(whole)


def _silent_if_read(state: dict[str, torch.Tensor], folder: Path, name: str) -> str:
    """A checkpoint that reads without an error, whatever it holds, has not noticed."""
    found = {key: torch.zeros_like(value) for key, value in state.items()}

    def read() -> None:
        if name == "torch.save":
            torch.load(folder / "x.pt")
        else:
            dcp.load(found, checkpoint_id=folder / "dcp", no_dist=True)

    return _caught(read)


def _caught(call: object) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()  # type: ignore[operator]
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "caught"
    return "silent"


def outcomes() -> Iterator[Outcome]:
    """Everything."""
    for tried in (recordings, shards, manifests, stored, texts, mixtures):
        with tempfile.TemporaryDirectory() as folder:
            yield from tried(Path(folder))
