"""Lhotse cut manifests, read so that no manifest can run code, and written so that a corpus folder can move.

Lhotse itself lets a manifest run shell commands (audio sources of type "command", shards named "pipe:…"), fetch addresses and
unpickle ("memory_raw" features). Nothing of the kind passes here: sources and storages are taken from a short list of harmless
ones, checked on every cut before anything is loaded.
"""

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from lhotse import CutSet, Recording
from lhotse.array import Array, TemporalArray
from lhotse.audio import AudioSource
from lhotse.cut import Cut, MixedCut
from lhotse.features import Features
from lhotse.serialization import deserialize_item

from speechlm.files import write_bytes_atomic

SAFE_SOURCES = {"file", "memory", "shar"}
SAFE_STORAGES = {"lilcom_files", "lilcom_chunky", "numpy_files", "memory_lilcom", "memory_npy"}


@dataclass(frozen=True)
class CutSource:
    """One corpus: where its cuts are, and how much of the mixture it makes.

    Args:
        path: a cut manifest (.jsonl or .jsonl.gz) or a Shar folder.
        weight: share of the mixture, relative to the other sources' weights.
        language: code such as "en", for cuts whose supervision names none.
    """

    path: str
    weight: float = 1.0
    language: str = ""

    def __post_init__(self) -> None:
        if not self.weight >= 0 or self.weight == float("inf"):
            raise ValueError(f"a source's weight must be a number of at least 0, got {self.weight} for {self.path}")


def read_cuts(path: str | Path) -> CutSet:
    """A lazy, checked CutSet from a manifest or a Shar folder; memory does not grow with its size.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: (while reading) a cut could run code or leave its folder, or a line is no cut; with file and line.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no cut manifest or Shar folder at {path}")
    if path.is_dir():
        return CutSet(cast(Any, CheckedCuts(str(path), shar=True)))
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"cuts are read from .jsonl, .jsonl.gz or a Shar folder, got {path}")
    return CutSet(cast(Any, CheckedCuts(str(path))))


@dataclass
class CheckedCuts:
    """Cuts of one manifest or Shar folder, in order, each checked; can be iterated any number of times."""

    path: str
    shar: bool = False

    def __iter__(self) -> Iterator[Cut]:
        return self._shar() if self.shar else self._manifest()

    def _manifest(self) -> Iterator[Cut]:
        path = Path(self.path)
        with _open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _checked(_parsed(line, f"{path}:{number}"), path.parent, f"{path}:{number}")

    def _shar(self) -> Iterator[Cut]:
        for number, cut in enumerate(CutSet.from_shar(in_dir=self.path), 1):
            yield _checked(cut, Path(self.path), f"{self.path}, cut {number}")


def write_cuts(cuts: Iterable[Cut], path: str | Path) -> int:
    """Write a manifest, whole or not at all, with files under its own folder named relative to it. Returns the number of cuts."""
    path = Path(path)
    lines = []
    for cut in cuts:
        lines.append(json.dumps(_relative(cut.to_dict(), path.parent.resolve()), ensure_ascii=False) + "\n")
    data = "".join(lines).encode("utf-8")
    write_bytes_atomic(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return len(lines)


def _open_text(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")


def _parsed(line: str, where: str) -> Cut:
    try:
        cut = deserialize_item(json.loads(line))
    except Exception as error:
        raise ValueError(f"{where}: this line is not a cut ({type(error).__name__}: {error})") from error
    if not isinstance(cut, Cut):
        raise ValueError(f"{where}: expected a cut, got a {type(cut).__name__}")
    return cut


def _checked(cut: Cut, folder: Path, where: str) -> Cut:
    """The cut, its files found, after everything it would load has been looked at."""
    for part in [track.cut for track in cut.tracks] if isinstance(cut, MixedCut) else [cut]:
        for value in [*vars(part).values(), *(getattr(part, "custom", None) or {}).values()]:
            _check_value(value, folder, where)
        for supervision in getattr(part, "supervisions", []):
            for value in (supervision.custom or {}).values():
                _check_value(value, folder, where)
    return cut


def _check_value(value: Any, folder: Path, where: str) -> None:
    if isinstance(value, Recording):
        value.sources = [_checked_source(source, folder, where) for source in value.sources]
    elif isinstance(value, TemporalArray):
        _check_value(value.array, folder, where)
    elif isinstance(value, Array | Features):
        if value.storage_type not in SAFE_STORAGES:
            raise ValueError(
                f"{where}: storage of type {value.storage_type!r} is refused, it could run code; allowed are {sorted(SAFE_STORAGES)}"
            )


def _checked_source(source: AudioSource, folder: Path, where: str) -> AudioSource:
    if source.type not in SAFE_SOURCES:
        raise ValueError(
            f"{where}: an audio source of type {source.type!r} is refused, it could run code or reach the network; "
            f"allowed are {sorted(SAFE_SOURCES)}"
        )
    if source.type != "file":
        return source
    name = str(source.source)
    if name.startswith("pipe:") or "://" in name:
        raise ValueError(f"{where}: {name!r} is not the path of a file")
    path = Path(name)
    if path.is_absolute():
        return source
    if ".." in path.parts:
        raise ValueError(f"{where}: the relative path {name!r} leaves the manifest's folder")
    return replace(source, source=str(folder / path))


def _relative(fields: Any, folder: Path) -> Any:
    """Paths of files under `folder`, anywhere in a manifest line, made relative to it."""
    if isinstance(fields, dict):
        made = {key: _relative(value, folder) for key, value in fields.items()}
        if made.get("type") == "file" and "source" in made:
            path = Path(made["source"]).resolve()
            made["source"] = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
        return made
    return [_relative(value, folder) for value in fields] if isinstance(fields, list) else fields
