"""Documents of corpora, from every kind of file that rows are packed from."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.audio_batches import text_of
from datamodules.bounded_lines import bounded_lines, optional
from datamodules.cuts import CheckedCuts, manifests_of
from datamodules.interleaved import read_interleaved
from datamodules.token_cuts import tokens_of
from datamodules.token_folder import TokenFolder
from speechlm.tokens.templates import NEEDS, Kind

TEXT_FILES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
PART_FILES = (".safetensors", ".jsonl", ".jsonl.gz", ".jsonl.zst")
MAX_LINE_BYTES = 256 * 2**20


class Unusable(Exception):
    """A document that can not be used; `reason` is two words that are counted, the message says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


@dataclass
class Raw:
    """A document as a corpus has it; what its kind does not need is empty.

    Attributes:
        id: for messages.
        text: of text documents and pairs.
        speech: (T,) codes, of speech and pairs.
        parts: of interleaved documents, ("text", string or ids) and ("speech", codes).
        problem: why it can not be used, empty where it can.
        detail: more about the problem.
        voice: who speaks, "" where nobody says.
        left_out: characters of a text, or turns of a chat, that are not in it any more, by reason.
        shortened: turns that are shorter than they were.
    """

    id: str
    text: str = ""
    speech: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    parts: list[tuple[str, Any]] = field(default_factory=list)
    problem: str = ""
    detail: str = ""
    voice: str = ""
    left_out: Counter[str] = field(default_factory=Counter)
    shortened: int = 0


def files_of(paths: list[str], kind: Kind) -> list[Path]:
    """All files of a corpus, in order, folders searched through.

    Raises:
        FileNotFoundError: a path is not there.
        ValueError: a folder has no file of the kind, a folder of tokens is not finished, or a file is listed twice.
    """
    files = [file for path in paths for file in _files(Path(path), kind)]
    doubled = sorted({str(file) for file in files if files.count(file) > 1}) if len(set(files)) < len(files) else []
    if doubled:
        raise ValueError(f"listed twice: {', '.join(doubled)}")
    return files


def _files(path: Path, kind: Kind) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if "{speech}" in NEEDS[kind]:
        folder = TokenFolder.find(path)
        found = folder.manifests() if folder else manifests_of(path)
        wanted = "cuts with speech tokens"
    else:
        suffixes = TEXT_FILES if kind == "text" else PART_FILES
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found = [file for file in inside if file.name.endswith(suffixes) and not file.name.startswith(".")]
        wanted = ", ".join(suffixes)
    if not found:
        raise ValueError(f"{path} has nothing that documents of kind {kind!r} are read from ({wanted})")
    return found


def read_documents(path: Path, kind: Kind, text_field: str = "text", id_field: str = "id") -> Iterator[Raw]:
    """Documents of one file, in order; a document that can not be used says so in `problem`.

    Raises:
        ValueError: the file itself is cut short or damaged.
    """
    if "{speech}" in NEEDS[kind]:
        return _cuts(path)
    if path.name.endswith(".safetensors"):
        return (Raw(document.id, parts=list(document.parts)) for document in read_interleaved(path))
    if path.name.endswith(".parquet"):
        return _parquet(path, text_field, id_field)
    return _json_lines(path, kind, text_field, id_field)


def _cuts(path: Path) -> Iterator[Raw]:
    """Cuts of a manifest with their tokens and transcripts; a folder of tokens is compared with its checksums first."""
    folder = TokenFolder.find(path.parent)
    for cut in CheckedCuts([path], check=folder.check if folder else None):
        try:
            voice = (cut.supervisions[0].speaker or "") if cut.supervisions else ""
            yield Raw(cut.id, text_of(cut), tokens_of(cut), voice=str(voice))
        except (ValueError, OSError) as error:
            yield Raw(cut.id, problem="no tokens", detail=str(error))


def _json_lines(path: Path, kind: Kind, text_field: str, id_field: str) -> Iterator[Raw]:
    for where, line in placed_lines(path):
        try:
            fields = json.loads(line)
            name = str(fields.get(id_field, where))
            yield (
                Raw(name, parts=_parts(fields["parts"]))
                if kind == "interleaved"
                else Raw(name, _string(fields[text_field]))
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            yield Raw(where, problem="bad line", detail=f"{type(error).__name__}: {error}")


def _parts(parts: Any) -> list[tuple[str, Any]]:
    """``[["text", "words" or ids], ["speech", codes], …]``, checked."""
    made: list[tuple[str, Any]] = []
    for kind, value in parts:
        if kind not in ("text", "speech"):
            raise ValueError(f"a part is 'text' or 'speech', got {kind!r}")
        numbers = None if kind == "text" and isinstance(value, str) else np.array(value)
        if numbers is not None and (numbers.ndim != 1 or (numbers.size and numbers.dtype.kind != "i")):
            raise ValueError(f"a part of {kind} is a list of whole numbers")
        made.append((kind, value if numbers is None else numbers.astype(np.int64)))
    return made


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"the text is no string but {type(value).__name__}")
    return value


def _parquet(path: Path, text_field: str, id_field: str) -> Iterator[Raw]:
    parquet = optional("pyarrow.parquet", "pyarrow", path)
    try:
        file = parquet.ParquetFile(path)
        columns = [name for name in (text_field, id_field) if name in file.schema_arrow.names]
        if text_field not in columns:
            raise ValueError(f"{path} has no column {text_field!r}, only {file.schema_arrow.names}")
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            rows = batch.to_pydict()
            for text, name in zip(rows[text_field], rows.get(id_field, [None] * len(batch)), strict=True):
                number += 1
                yield Raw(str(name or f"{path}:{number}"), text or "")
    except OSError as error:  # what pyarrow raises for a damaged file
        raise ValueError(f"{path} is cut short or damaged ({error}); fetch it again") from error


def placed_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Lines of a text file that are not blank, each behind its place, such as "chats.jsonl:3"; see `bounded_lines`."""
    for number, line in enumerate(bounded_lines(path, MAX_LINE_BYTES), 1):
        if line.strip():
            yield f"{path}:{number}", line
