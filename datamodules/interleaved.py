"""Interleaved documents on disk: text ids and speech codes in turns, a shard a file.

A shard is a safetensors file of six tensors, and is made whole or not at all:

    values     (N,) uint32   text-tokenizer ids and speech codes, part after part
    part_ends  (P,) int64    in `values`, behind each part
    speech     (P,) bool     whether a part is speech
    doc_ends   (D,) int64    in parts, behind each document
    chars      (P, 2) int64  [start, end) of each part in the document's text, in characters; -1 where nobody says
    names      (B,) uint8    the documents' ids in UTF-8, each followed by a zero byte

Its metadata is one JSON object, `about` (several entries would be written in any order, and the same shard have many forms): it
names both tokenizers, as `Vocab` does, and the CRC-32 of the tensors.
"""

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from speechlm.files import write_bytes_atomic

FORMAT = "speechlm interleaved 3"
TENSORS = {
    "values": np.uint32,
    "part_ends": np.int64,
    "speech": np.bool_,
    "doc_ends": np.int64,
    "chars": np.int64,
    "names": np.uint8,
}


class Interleaved(NamedTuple):
    """A document in parts."""

    id: str
    parts: list[tuple[str, np.ndarray]]  # ("text", ids of the text tokenizer) or ("speech", codes)
    chars: list[tuple[int, int]] | None = None  # [start, end) of each part in the text it was made of


@dataclass(frozen=True)
class Making:
    """What the ids and codes of a shard mean.

    Args:
        text_tokenizer: as in `Vocab`.
        speech_tokenizer: as in `Vocab`.
        token_rate_hz: speech tokens per second.
        provenance: more, for people: model, seed, sampling.
    """

    text_tokenizer: str
    speech_tokenizer: str
    token_rate_hz: float
    provenance: dict[str, str] = field(default_factory=dict)


def write_interleaved(path: str | Path, documents: Iterable[Interleaved], making: Making) -> int:
    """Write a shard.

    Returns:
        The number of documents.

    Raises:
        ValueError: a part is neither text nor speech, or an id has a zero byte.
    """
    values: list[np.ndarray] = []
    kinds: list[bool] = []
    doc_ends: list[int] = []
    chars: list[tuple[int, int]] = []
    names = bytearray()
    for document in documents:
        for kind, ids in document.parts:
            if kind not in ("text", "speech") or "\0" in document.id:
                raise ValueError(
                    f"document {document.id!r}: a part is 'text' or 'speech', an id has no zero byte, got {kind!r}"
                )
            values.append(np.asarray(ids))
            kinds.append(kind == "speech")
        doc_ends.append(len(kinds))
        chars += document.chars or [(-1, -1)] * len(document.parts)
        names += document.id.encode("utf-8", "replace") + b"\0"
    tensors = {
        "values": np.concatenate(values) if values else np.zeros(0),
        "part_ends": np.cumsum([len(one) for one in values]),
        "speech": np.array(kinds),
        "doc_ends": np.array(doc_ends),
        "chars": np.array(chars, np.int64).reshape(-1, 2),
        "names": np.frombuffer(bytes(names), np.uint8),
    }
    typed: dict[str, np.ndarray] = {
        name: np.ascontiguousarray(tensors[name].astype(dtype)) for name, dtype in TENSORS.items()
    }
    about = {"format": FORMAT, **asdict(making), "crc32": _crc(typed)}
    write_bytes_atomic(path, save(typed, {"about": json.dumps(about, sort_keys=True)}))
    return len(doc_ends)


def read_making(path: str | Path) -> Making:
    """What a shard's ids mean; nothing else of it is read.

    Raises:
        ValueError: the file is no shard.
    """
    about = _about(path)
    return Making(**{name: about[name] for name in Making.__dataclass_fields__})


def read_interleaved(path: str | Path) -> Iterator[Interleaved]:
    """Documents of a shard, in order, once all of its bytes are found to be what was written.

    Raises:
        ValueError: the file is cut short or damaged, or no shard.
    """
    about = _about(path)
    try:
        with safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in TENSORS}
    except SafetensorError as error:
        raise _no_shard(path, str(error)) from None
    if _crc(tensors) != about["crc32"]:
        raise _no_shard(path, "it is not what was written")
    starts = np.concatenate([[0], tensors["part_ends"]])
    names = tensors["names"].tobytes().decode("utf-8").split("\0")
    first = 0
    for name, last in zip(names, tensors["doc_ends"].tolist(), strict=False):
        parts = [
            (
                "speech" if tensors["speech"][i] else "text",
                tensors["values"][starts[i] : starts[i + 1]].astype(np.int64),
            )
            for i in range(first, last)
        ]
        chars = [(int(a), int(b)) for a, b in tensors["chars"][first:last]]
        yield Interleaved(name, parts, chars if all(a >= 0 for a, _ in chars) else None)
        first = last


def _about(path: str | Path) -> dict[str, Any]:
    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["about"])
        missing = {"format", "crc32", *Making.__dataclass_fields__} - set(about)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _no_shard(path, str(error)) from None
    if missing or about["format"] != FORMAT:
        raise _no_shard(path, f"its format is {about.get('format')!r}")
    return about


def _crc(tensors: dict[str, np.ndarray]) -> int:
    crc = 0
    for name in TENSORS:
        crc = zlib.crc32(tensors[name].tobytes(), crc)
    return crc


def _no_shard(path: str | Path, why: str) -> ValueError:
    return ValueError(f"{path} is cut short, damaged or no shard of interleaved documents: {why}; make it again")
