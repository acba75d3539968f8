"""What a config names: corpora, rows and weights, and whether they are whole."""

import json
import math
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from datamodules.cuts import manifests_of, read_cuts
from datamodules.recordings import BadRecording, load_recording
from datamodules.token_folder import HEADER, DamagedShard, TokenFolder
from speechlm.checks.finding import Finding, Status, size
from speechlm.runs import leaves
from speechlm.tokens.clock import Clock
from speechlm.tokens.rows import INDEX, RowFolder
from speechlm.tokens.vocab import Vocab

RECORDINGS = 20  # of a manifest that are decoded


def data_is_whole(config: dict[str, Any], quick: bool) -> Iterator[Finding]:
    """Every corpus, folder of rows and folder of tokens in the data's section, read as the job would.

    Args:
        config: of the run, plain values.
        quick: sizes and headers of large folders, not every byte.
    """
    clock = Clock(**config["clock"])
    vocab = _vocab(config)
    for key, value in leaves(config["data"].get("init_args") or {}):
        if isinstance(value, str) and _names_a_place(key, value):
            yield _look(f"data {value}", Path(value), clock, vocab, quick)


def _names_a_place(key: str, value: str) -> bool:
    """Fields that hold paths: `path`, and the sets of validation, which are said by name."""
    return key.endswith("path") or ("val." in f"{key}." and key.rsplit(".", 1)[-1] not in ("language", "name"))


def _look(name: str, path: Path, clock: Clock, vocab: Vocab | None, quick: bool) -> Finding:
    try:
        if (path / INDEX).is_file() or path.suffix == ".rows":
            return _rows(name, path, vocab, quick)
        if (path / HEADER).is_file():
            return _tokens(name, path, quick)
        return _recordings(name, path, clock)
    except FileNotFoundError as error:
        return Finding(name, "broken", f"not there: {error}", "make it, mount it, or mend the path in the config")
    except (ValueError, DamagedShard) as error:
        return Finding(name, "broken", str(error), "fetch or make it again")


def _rows(name: str, path: Path, vocab: Vocab | None, quick: bool) -> Finding:
    rows = RowFolder(path, verify=not quick)
    if vocab is not None and rows.vocab_hash != vocab.hash:
        found = f"packed for the vocabulary {rows.vocab_hash}, the model has {vocab.hash}"
        return Finding(name, "broken", found, "name the vocab.json beside the rows, or pack again")
    how = "sizes and headers" if quick else "every checksum"
    return Finding(name, "good", f"{len(rows)} rows of {rows.row_len} ids; {how} compared")


def _tokens(name: str, path: Path, quick: bool) -> Finding:
    folder = TokenFolder.find(path)
    assert folder is not None, "it has a header"
    missing = set(folder.missing())
    if missing:
        found = f"{len(missing)} of {folder.header.num_shards} shards are missing"
        return Finding(name, "broken", found, "run speechlm.tokenize again; it goes on where it stopped")
    shards = sorted({0, folder.header.num_shards - 1}) if quick else range(folder.header.num_shards)
    for shard in shards:
        folder.verify(shard)
    return Finding(
        name,
        "good",
        f"{folder.header.num_cuts} cuts in {folder.header.num_shards} shards; sha256 of {len(shards)} compared",
    )


def _recordings(name: str, path: Path, clock: Clock) -> Finding:
    manifests = manifests_of(path)
    count, bad = 0, []
    for cut in islice(read_cuts(path), RECORDINGS):
        count += 1
        try:
            load_recording(cut, clock)
        except BadRecording as error:
            bad.append(f"{cut.id}: {error}")
    if not count:
        return Finding(name, "broken", "holds no cut", "prepare it again: python -m datamodules.prepare")
    if bad:
        status: Status = "broken" if len(bad) == count else "mind"
        return Finding(
            name,
            status,
            f"{len(bad)} of the first {count} recordings can not be used: {bad[0]}",
            "mend them, or raise max_skip_rate",
        )
    return Finding(name, "good", f"{len(manifests)} manifests; the first {count} recordings were decoded")


def _vocab(config: dict[str, Any]) -> Vocab | None:
    path = (config["model"].get("init_args") or {}).get("vocab")
    return Vocab.load(Path(path)) if isinstance(path, str) and Path(path).is_file() else None


def weights_are_there(config: dict[str, Any]) -> Iterator[Finding]:
    """Models that the model's section names, in a folder or in the hub's cache."""
    arguments = config["model"].get("init_args") or {}
    for key in ("vocab", "lm", "whisper", "source", "text_tokenizer", "run"):
        value = arguments.get(key)
        if isinstance(value, str) and value:
            yield _weights(f"model {key}", value)


def _weights(name: str, value: str) -> Finding:
    path = Path(value)
    if path.is_file():
        return Finding(name, "good", f"{value}, {size(path.stat().st_size)}")
    folder = path if path.is_dir() else _cached(value)
    if folder is None:
        advice = f"mend the path, or fetch it on a machine with network: hf download {value}"
        return Finding(name, "broken", f"{value} is neither a folder nor in the hub's cache", advice)
    files = sorted(folder.glob("*.safetensors"))
    try:
        count = sum(parameters_of(file) for file in files)
    except ValueError as error:
        return Finding(name, "broken", str(error), "fetch it again")
    return Finding(name, "good", f"{folder}" + (f", {count / 1e6:.1f} M numbers" if files else ", no weights in it"))


def _cached(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def parameters_of(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header.

    Raises:
        ValueError: it is cut short, or none.
    """
    with open(file, "rb") as opened:
        begin = opened.read(8)
        length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else 0
        text = opened.read(length) if 0 < length < 2**28 else b""
    try:
        header = json.loads(text)
        tensors = [value for name, value in header.items() if name != "__metadata__"]
        end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} is no file of safetensors") from error
    if file.stat().st_size != 8 + length + end:
        raise ValueError(f"{file} has {file.stat().st_size} bytes, its header says {8 + length + end}")
    return sum(math.prod(tensor["shape"]) for tensor in tensors)


def checkpoint_bytes(config: dict[str, Any]) -> float:
    """About what a checkpoint takes: weights and two moments in float32; 0 where the weights are not at hand."""
    arguments = config["model"].get("init_args") or {}
    for key in ("lm", "whisper"):
        value = arguments.get(key)
        if isinstance(value, str) and not arguments.get("from_scratch"):
            folder = Path(value) if Path(value).is_dir() else _cached(value)
            files = sorted(folder.glob("*.safetensors")) if folder else []
            return 12.0 * sum(map(parameters_of, files))
    return 0.0
