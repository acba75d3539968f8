"""Rows on disk: packed ids of a fixed length, memory-mapped, each with a checksum that is looked at whenever the row is read.

One file, little-endian, nothing in it but numbers and a JSON header at its end, which is written last:

    bytes 0 to 63    "SPLMROWS", then zeros
    sections         each begins at a multiple of 64 bytes:
      ids              (R, S) uint16, or uint32 where the vocabulary has more than 65,536 ids; padding is any id
      document_ends    (D,) uint32, position in its row behind each document's last id, row by row
      documents_until  (R + 1,) uint64, row i has documents [documents_until[i], documents_until[i + 1])
      loss_spans       (L, 2) uint32, [begin, end) of positions of a row that are to be predicted
      spans_until      (R + 1,) uint64, as documents_until
      row_sums         (R,) uint64, XXH3 (64 bits) of a row's ids, document ends and loss spans, in this order
    header           JSON: the vocabulary's hash, counts, and place, type, shape and XXH3 of every section
    last 20 bytes    length of the header (uint64), CRC-32 of the header (uint32), "SPLMDONE"

A file without its last eight bytes is not a whole file. A folder of files has an `index.json` that names them, written when the
last of them is whole.
"""

import json
import mmap
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from xxhash import xxh3_64, xxh3_64_hexdigest

from speechlm.files import atomic_file, write_text_atomic

BEGIN, DONE = b"SPLMROWS", b"SPLMDONE"
TAIL = struct.Struct("<QI8s")
ALIGN = 64
VERSION = 1
SUFFIX = ".rows"
INDEX = "index.json"
SECTIONS = {
    "document_ends": "<u4", "documents_until": "<u8", "loss_spans": "<u4", "spans_until": "<u8", "row_sums": "<u8",
}  # fmt: skip
#: Header fields that all files of a folder have in common.
SHARED = ("version", "vocab_hash", "vocab_size", "row_len", "token_rate_hz", "source", "kind", "language")


class Row(NamedTuple):
    """One row, as views into the file."""

    ids: np.ndarray  # (S,) uint16 or uint32
    document_ends: np.ndarray  # (D,) uint32, the last one is where the padding begins
    loss_spans: np.ndarray  # (L, 2) uint32


@dataclass
class RowWriter:
    """Appends rows; `row_writer` makes one.

    Attributes:
        file: open for writing.
        row_len: ids of a row.
        vocab_size: ids of the vocabulary, every id must be below it.
    """

    file: IO[bytes]
    row_len: int
    vocab_size: int
    ends: list[np.ndarray] = field(default_factory=list)
    spans: list[np.ndarray] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)
    ids_sum: Any = field(default_factory=xxh3_64)

    @property
    def dtype(self) -> np.dtype:
        """The smallest type that holds every id."""
        return np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")

    def write(self, ids: np.ndarray, document_ends: np.ndarray, loss_spans: np.ndarray) -> None:
        """Append a row.

        Args:
            ids: (S,) whole numbers, padding included.
            document_ends: (D,) ascending; a document begins where the one before it ends, the first at 0.
            loss_spans: (L, 2) ascending, none of them empty or with the first position of a document in it.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        ends, spans = np.asarray(document_ends, "<u4"), np.asarray(loss_spans, "<u4").reshape(-1, 2)
        assert ids.shape == (self.row_len,), ids.shape
        assert len(ends) and 0 < ends[0] and (np.diff(ends.astype(np.int64)) > 0).all() and ends[-1] <= self.row_len
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocab_size:
            raise ValueError(f"id {low if low < 0 else high} is outside the vocabulary of {self.vocab_size} ids")
        data = np.ascontiguousarray(ids, self.dtype)
        self.file.write(data.data)
        self.ids_sum.update(data.data)
        self.sums.append(_row_sum(data, ends, spans))
        self.ends.append(ends)
        self.spans.append(spans)

    def finish(self, header: dict[str, Any]) -> None:
        """The sections behind the ids, the header and the mark that the file is whole."""
        shape = [len(self.sums), self.row_len]
        ids = {"offset": ALIGN, "dtype": self.dtype.str, "shape": shape, "xxh3": self.ids_sum.hexdigest()}
        arrays = {
            "document_ends": _joined(self.ends, (0,)),
            "documents_until": _until(self.ends),
            "loss_spans": _joined(self.spans, (0, 2)),
            "spans_until": _until(self.spans),
            "row_sums": np.array(self.sums, "<u8"),
        }
        sections = {"ids": ids, **{name: self._section(array) for name, array in arrays.items()}}
        self._align()
        text = json.dumps({**header, "sections": sections}, ensure_ascii=True).encode()
        self.file.write(text + TAIL.pack(len(text), zlib.crc32(text), DONE))

    def _section(self, array: np.ndarray) -> dict[str, Any]:
        place = self._align()
        self.file.write(array.tobytes())
        return {
            "offset": place,
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "xxh3": xxh3_64_hexdigest(array.data),
        }

    def _align(self) -> int:
        self.file.write(bytes(-self.file.tell() % ALIGN))
        return self.file.tell()


@contextmanager
def row_writer(
    path: str | Path, row_len: int, vocab_hash: str, vocab_size: int, about: dict[str, Any]
) -> Iterator[RowWriter]:
    """A file of rows that takes its name only when it is whole.

    Args:
        path: the file.
        row_len: ids of a row.
        vocab_hash: of the vocabulary that gives the ids their meaning.
        vocab_size: ids of that vocabulary.
        about: more for the header; may still change until the file is finished.
    """
    with atomic_file(path) as file:
        file.write(BEGIN.ljust(ALIGN, b"\0"))
        writer = RowWriter(file, row_len, vocab_size)
        yield writer
        fixed = {"version": VERSION, "vocab_hash": vocab_hash, "vocab_size": vocab_size, "row_len": row_len}
        writer.finish({**about, **fixed, "rows": len(writer.sums)})


class RowFile:
    """A file of rows, memory-mapped.

    Opening reads the header alone. Each row's checksum is compared when the row is read, so no changed bit gets further.

    Args:
        path: the file.
        verify: compare the checksums of all its bytes now.

    Raises:
        ValueError: the file is cut short, damaged, or no file of rows.
    """

    def __init__(self, path: str | Path, verify: bool = False) -> None:
        self.path = Path(path)
        with open(self.path, "rb") as file:
            size = file.seek(0, 2)
            if size < ALIGN + TAIL.size:
                raise self._damaged(f"has {size} bytes")
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.map.madvise(mmap.MADV_RANDOM)
        self.header = self._read_header(size)
        self.row_len: int = self.header["row_len"]
        self.rows: int = self.header["rows"]
        self.ids = self._section("ids", (self.rows, self.row_len))
        self.row_sums = self._section("row_sums", (self.rows,))
        self.documents_until = self._section("documents_until", (self.rows + 1,))
        self.spans_until = self._section("spans_until", (self.rows + 1,))
        self.document_ends = self._section("document_ends", (int(self.documents_until[-1]),))
        self.loss_spans = self._section("loss_spans", (int(self.spans_until[-1]), 2))
        if verify:
            self.verify()

    def __len__(self) -> int:
        return self.rows

    def row(self, index: int) -> Row:
        """A row, its checksum compared.

        Raises:
            ValueError: its bytes are not those that were written.
        """
        ids = self.ids[index]
        ends = self.document_ends[self.documents_until[index] : self.documents_until[index + 1]]
        spans = self.loss_spans[self.spans_until[index] : self.spans_until[index + 1]]
        if _row_sum(ids, ends, spans) != self.row_sums[index]:
            raise self._damaged(f"row {index} (byte {self._place('ids') + index * ids.nbytes}) is not what was written")
        return Row(ids, ends, spans)

    def will_need(self, index: int) -> None:
        """Have the operating system fetch a row, without waiting for it."""
        nbytes = self.row_len * self.ids.itemsize
        begin = self._place("ids") + index * nbytes
        page = begin - begin % mmap.PAGESIZE
        self.map.madvise(mmap.MADV_WILLNEED, page, begin + nbytes - page)

    def verify(self) -> None:
        """Compare the checksums of every section.

        Raises:
            ValueError: naming the section that is not what was written.
        """
        for name, section in self.header["sections"].items():
            if xxh3_64_hexdigest(getattr(self, name).data) != section["xxh3"]:
                raise self._damaged(f"the section {name} is not what was written")
        for begin, end in self._gaps():
            if any(self.map[begin:end]):
                raise self._damaged(f"bytes {begin} to {end}, between two sections, are not what was written")

    @property
    def header_crc(self) -> int:
        """What tells this file from another."""
        return TAIL.unpack(self.map[-TAIL.size :])[1]

    def _gaps(self) -> Iterator[tuple[int, int]]:
        """Where there are zeros between what begins the file, the sections, and the header."""
        end = len(BEGIN)
        for begin, size in sorted((self._place(name), getattr(self, name).nbytes) for name in self.header["sections"]):
            yield end, begin
            end = begin + size
        yield end, len(self.map) - TAIL.size - TAIL.unpack(self.map[-TAIL.size :])[0]

    def _read_header(self, size: int) -> dict[str, Any]:
        length, crc, done = TAIL.unpack(self.map[-TAIL.size :])
        if self.map[: len(BEGIN)] != BEGIN:
            raise self._damaged(f"does not begin with {BEGIN.decode()}")
        if done != DONE or length > size - ALIGN - TAIL.size:
            raise self._damaged("has no end")
        text = self.map[-TAIL.size - length : -TAIL.size]
        if zlib.crc32(text) != crc:
            raise self._damaged("has a header that is not what was written")
        header = json.loads(text)
        if header["version"] != VERSION:
            raise ValueError(f"{self.path} is of version {header['version']}, this program reads version {VERSION}")
        return header

    def _place(self, name: str) -> int:
        return self.header["sections"][name]["offset"]

    def _section(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        section = self.header["sections"][name]
        dtype = np.dtype(SECTIONS.get(name) or ("<u2" if self.header["vocab_size"] <= 2**16 else "<u4"))
        count = int(np.prod(shape))
        if tuple(section["shape"]) != shape or section["offset"] + count * dtype.itemsize > len(self.map):
            raise self._damaged(f"the section {name} does not have the shape {shape}")
        return np.frombuffer(self.map, dtype, count, section["offset"]).reshape(shape)

    def _damaged(self, what: str) -> ValueError:
        return ValueError(
            f"{self.path} is cut short, damaged or no file of rows: {what}; fetch it again, or delete it and pack again"
        )


class RowFolder:
    """All rows of a folder as one sequence, its files mapped when they are first read from.

    Args:
        path: a folder with `index.json`, or one file of rows.
        verify: compare the checksums of all bytes of all files now.

    Raises:
        FileNotFoundError: there is no such folder, it is not finished, or a file of it is missing.
        ValueError: the index or a file is damaged.
    """

    def __init__(self, path: str | Path, verify: bool = False) -> None:
        self.path = Path(path)
        self._open: dict[int, RowFile] = {}
        self.index = index_of([self.path]) if self.path.is_file() else read_index(self.path)
        self.folder = self.path.parent if self.path.is_file() else self.path
        self.row_len: int = self.index["row_len"]
        self.vocab_hash: str = self.index["vocab_hash"]
        self._files: list[dict[str, Any]] = self.index["files"]
        self._until = [0, *accumulate(entry["rows"] for entry in self._files)]
        for entry in self._files:
            self._check_size(entry)
        if verify:
            for number in range(len(self._files)):
                self._file(number).verify()

    def __len__(self) -> int:
        return self._until[-1]

    @property
    def fingerprint(self) -> int:
        """What tells these rows from others."""
        return _index_crc(self.index)

    def locate(self, index: int) -> tuple[RowFile, int]:
        """The file of a row, and the row's number in it."""
        number = bisect_right(self._until, index) - 1
        return self._open.get(number) or self._file(number), index - self._until[number]

    def row(self, index: int) -> Row:
        """See `RowFile.row`."""
        file, number = self.locate(index)
        return file.row(number)

    def _file(self, number: int) -> RowFile:
        entry = self._files[number]
        file = RowFile(self.folder / entry["name"])
        if (len(file), file.header_crc) != (entry["rows"], entry["header_crc"]):
            raise ValueError(f"{file.path} is not the file that {self.folder / INDEX} was made of; pack again")
        return self._open.setdefault(number, file)

    def _check_size(self, entry: dict[str, Any]) -> None:
        path = self.folder / entry["name"]
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, {self.folder / INDEX} names it; fetch it, or pack again")
        if path.stat().st_size != entry["bytes"]:
            raise ValueError(
                f"{path} has {path.stat().st_size} bytes, {entry['bytes']} were written; fetch it again, or delete it and "
                f"pack again"
            )


def index_of(files: Sequence[Path]) -> dict[str, Any]:
    """What `index.json` says of files: name, rows, size and identity of each, and the sums of their counts.

    Raises:
        ValueError: the files differ in vocabulary or row length, or one is damaged.
    """
    opened = [RowFile(path) for path in files]
    shared = [{name: file.header.get(name) for name in SHARED} for file in opened]
    for file, fields in zip(opened, shared, strict=True):
        if fields != shared[0]:
            raise ValueError(f"{file.path} was made as {fields}, {opened[0].path} as {shared[0]}; they do not mix")
    entries = [{"name": f.path.name, "rows": len(f), "bytes": len(f.map), "header_crc": f.header_crc} for f in opened]
    return {**shared[0], "counts": sum_counts(f.header.get("counts", {}) for f in opened), "files": entries}


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Write `index.json`: from then on the folder is whole."""
    write_text_atomic(folder / INDEX, json.dumps({**index, "crc32": _index_crc(index)}, indent=1) + "\n")


def read_index(folder: Path) -> dict[str, Any]:
    """Read what `write_index` wrote.

    Raises:
        FileNotFoundError: the folder has no index.
        ValueError: the index is not what was written, or names a file twice.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"no rows at {folder}: there is no {INDEX}, packing has not finished there")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        damaged = index.pop("crc32") != _index_crc(index)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        damaged = True
    if damaged:
        raise ValueError(f"{path} is damaged, its checksum does not fit; fetch it again, or delete it and pack again")
    names = [entry["name"] for entry in index["files"]]
    if len(set(names)) < len(names):
        raise ValueError(f"{path} names a file twice: {sorted(name for name in set(names) if names.count(name) > 1)}")
    return index


def sum_counts(counts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Counts added up by name, whatever names each has; counts inside counts likewise."""
    total: dict[str, Any] = {}
    for one in counts:
        for name, value in one.items():
            nested = isinstance(value, dict)
            total[name] = sum_counts([total.get(name, {}), value]) if nested else total.get(name, 0) + value
    return total


def _row_sum(ids: np.ndarray, ends: np.ndarray, spans: np.ndarray) -> int:
    made = xxh3_64(ids.data)
    made.update(ends.data)
    made.update(spans.data)
    return made.intdigest()


def _joined(arrays: list[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(empty, "<u4")


def _until(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(array) for array in arrays], dtype=np.int64)]).astype("<u8")


def _index_crc(index: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(index, sort_keys=True).encode())
