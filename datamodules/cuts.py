"""Lhotse cut manifests, read so that no manifest can run code, and written so that a corpus folder can move.

Lhotse itself lets a manifest run shell commands (audio sources of type "command", paths named "pipe:…", Kaldi archives),
fetch addresses ("url") and unpickle ("memory_raw" arrays, "pillow_memory" images). Nothing of the kind passes here: every
JSON line is checked against short lists of harmless sources and storages before Lhotse sees it, and what the lists do not
name is refused with file and line.

Beside Lhotse's own "file", "memory" (base64 in JSON) and "shar", a source may have the type "tar", with `offset` and `size`
in bytes: a member of an uncompressed tar, read where it lies, so that a corpus made of tars is never unpacked nor copied.
Likewise an array may have the storage "tar_npy", see `tar_arrays`.
"""

import base64
import gzip
import json
import math
import os
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

from lhotse import AudioSource, CutSet
from lhotse.cut import Cut, MixedCut, MonoCut, MultiCut
from lhotse.serialization import deserialize_item

from datamodules import tar_arrays
from datamodules.tars import MAX_MEMBER_BYTES, Member, read_member, walk
from datamodules.token_folder import TokenFolder
from speechlm.files import atomic_file

SAFE_SOURCES = ("file", "memory", "shar", "tar")
SAFE_STORAGES = ("lilcom_chunky", "lilcom_files", "numpy_files", "shar", tar_arrays.STORAGE)  # read without pickle
CUT_TYPES = ("MonoCut", "MultiCut", "MixedCut")
MAX_LINE_BYTES = 64 * 2**20
TAR_KEY = "tar sources"
SHARD_NAME = re.compile(r"cuts\.(\d+)\.jsonl")


@dataclass(frozen=True)
class CutSource:
    """One corpus: where its cuts are, and how much of the mixture it makes.

    Args:
        path: a cut manifest (.jsonl or .jsonl.gz), a folder of them, or a Shar folder.
        weight: share of the mixture, relative to the other sources' weights.
        language: code such as "en", for cuts whose supervision names none.
    """

    path: str
    weight: float = 1.0
    language: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"a source's weight must be a number of at least 0, got {self.weight} for {self.path}")


@dataclass
class TarSlice(AudioSource):
    """An encoded recording inside an uncompressed tar, read where it lies."""

    offset: int = 0
    size: int = 0

    def _prepare_for_reading(self, offset: float, duration: float | None) -> BytesIO:
        return BytesIO(read_member(cast(str, self.source), self.offset, self.size))


def read_cuts(path: str | Path, language: str = "", shuffle_seed: str | None = None) -> CutSet:
    """A lazy, checked CutSet from a manifest, a folder of manifests or a Shar folder; its size does not cost memory.

    Args:
        path: .jsonl, .jsonl.gz or a folder. A folder that `speechlm.tokenize` wrote must be whole, and every shard is
            compared with its checksums before it is read.
        language: for supervisions that name none.
        shuffle_seed: the order of the folder's manifests or shards; None is by name.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: at once, it is nothing that cuts are read from; while reading, a cut could run code or leave its folder,
            or a line is no cut; with file and line.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no cut manifest or folder of them at {path}")
    tokenized = TokenFolder.find(path)
    manifests = tokenized.manifests() if tokenized else manifests_of(path)
    if not manifests:
        raise ValueError(f"cuts are read from .jsonl, .jsonl.gz or a folder that has some, got {path}")
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(manifests)
    return CutSet(cast(Any, CheckedCuts(manifests, language, tokenized.check if tokenized else None)))


@dataclass
class CheckedCuts:
    """Cuts of manifests, in order, each checked; can be iterated any number of times."""

    manifests: list[Path]
    language: str = ""
    check: Callable[[Path], None] | None = None  # called with every manifest before it is read

    def __iter__(self) -> Iterator[Cut]:
        for _, cut in self.numbered():
            yield cut

    def numbered(self, wanted: Callable[[int], bool] = lambda number: True) -> Iterator[tuple[int, Cut]]:
        """Cuts with their numbers, 0, 1, … over all manifests; lines whose number is not wanted are passed over unread."""
        count = 0
        for path in self.manifests:
            if self.check is not None:
                self.check(path)
            shard = _Shard.beside(path)
            parser = _LineParser(path.parent)
            for number, line in enumerate(lines(path), 1):
                if not line.strip():
                    continue
                if wanted(count):
                    yield count, self._cut(parser, line, f"{path}:{number}", shard)
                count += 1

    def _cut(self, parser: "_LineParser", line: bytes, where: str, shard: "_Shard | None") -> Cut:
        try:
            fields, tars = parser.parse(line)
            if self.language:
                _fill_language(fields, self.language)
            cut = cast(Cut, deserialize_item(fields))
            if not (math.isfinite(cut.duration) and cut.duration >= 0 and cut.start >= 0):
                raise ValueError(f"start {cut.start} and duration {cut.duration} are no stretch of time")
            if shard is not None and not (shard.absent and _has_own_sources(cut, tars)):
                tars = [shard.source(cut)]
            if tars:
                _fill_sources(cut, tars)
        except _Refused as error:
            raise ValueError(f"{where}: {error}") from None
        except (ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError, IndexError) as error:
            raise ValueError(
                f"{where}: this line is not a cut that can be read ({type(error).__name__}: {error})"
            ) from error
        return cut


def write_cuts(cuts: Iterable[Cut], path: str | Path) -> int:
    """Write a manifest, whole or not at all, with files under its own folder named relative to it.

    Returns:
        The number of cuts.
    """
    path = Path(path)
    folder = os.path.abspath(path.parent)
    return write_lines((cut_line(cut, folder) for cut in cuts), path)


def cut_line(cut: Cut, folder: str) -> bytes:
    """The line of a cut in a manifest that lies in `folder`, an absolute path."""
    return (json.dumps(_relative(cut.to_dict(), folder), ensure_ascii=False) + "\n").encode("utf-8")


def write_lines(content: Iterable[bytes], path: Path) -> int:
    """Write lines, whole or not at all, packed by gzip where the name says so, the same bytes each time; their number."""
    count = 0
    with _atomic(path) as file:
        for line in content:
            file.write(line)
            count += 1
    return count


class _Refused(ValueError):
    """Something that could run code, reach the network or leave the folder."""


def manifests_of(path: Path) -> list[Path]:
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    manifests = [p for p in found if p.name.endswith((".jsonl", ".jsonl.gz")) and not p.name.startswith(".")]
    # In a Shar folder the other .jsonl files are fields, not cuts.
    return [p for p in manifests if SHARD_NAME.match(p.name)] or manifests


def lines(path: Path) -> Iterator[bytes]:
    """Lines of a manifest, none of them longer than `MAX_LINE_BYTES`, whatever a compressed file unfolds to."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"{path} has a line of more than {MAX_LINE_BYTES} bytes; no cut is that long")
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); fetch or write it again") from error


class _LineParser:
    """Manifest lines to plain values; every JSON object in them, however deep, is checked as it is parsed.

    Recordings hide everywhere: in tracks, custom fields, and as impulse responses of transforms.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.tar_recordings = 0
        self.decoder = json.JSONDecoder(object_hook=self._check, parse_constant=_refuse_constant)

    def parse(self, line: bytes) -> tuple[dict[str, Any], list[AudioSource]]:
        """The fields of a cut, and its recording's sources of type "tar", which Lhotse does not know.

        Raises:
            ValueError: the line is no cut, or has something that is refused.
        """
        self.tar_recordings = 0
        fields = self.decoder.decode(line.decode("utf-8"))
        if not isinstance(fields, dict) or fields.get("type") not in CUT_TYPES:
            raise ValueError(f"expected a cut with a type of {', '.join(CUT_TYPES)}")
        tars: list[AudioSource] = []
        if self.tar_recordings:
            tars = fields["recording"].pop(TAR_KEY, []) if isinstance(fields.get("recording"), dict) else []
            if self.tar_recordings > 1 or not tars:
                raise _Refused("a source of type 'tar' is read only as the recording of a MonoCut or MultiCut")
        return fields, tars

    def _check(self, fields: dict[str, Any]) -> dict[str, Any]:
        if "storage_type" in fields:
            self._check_storage(fields)
        if isinstance(sources := fields.get("sources"), list):
            if any(isinstance(source, dict) and source.get("type") == "tar" for source in sources):
                self.tar_recordings += 1
                fields[TAR_KEY] = [self._tar_slice(source) for source in sources]
                fields["sources"] = [{"type": "shar", "channels": s["channels"], "source": ""} for s in sources]
            else:
                for source in sources:
                    self._check_source(source)
        return fields

    def _check_source(self, source: Any) -> None:
        kind = source.get("type") if isinstance(source, dict) else None
        if kind not in SAFE_SOURCES or "video" in source:
            raise _Refused(
                f"an audio source of type {kind!r} is refused, it could run code or reach the network; "
                f"allowed are {', '.join(SAFE_SOURCES)}, without video"
            )
        if kind == "file":
            source["source"] = self._resolved(source.get("source"))
        elif kind == "memory":
            source["source"] = base64.b64decode(str(source.get("source")), validate=True)
        else:
            source["source"] = ""

    def _tar_slice(self, source: Any) -> TarSlice:
        numbers = (source.get("offset"), source.get("size")) if isinstance(source, dict) else ()
        if not numbers or source.get("type") != "tar" or not all(type(n) is int and n >= 0 for n in numbers):
            raise _Refused(f"a source of type 'tar' has a path, and an offset and a size in bytes, got {source}")
        if source["size"] > MAX_MEMBER_BYTES:
            raise _Refused(f"a recording of {source['size']} bytes is more than the {MAX_MEMBER_BYTES} allowed")
        path = self._resolved(source.get("source"))
        return TarSlice("tar", list(source["channels"]), path, offset=source["offset"], size=source["size"])

    def _check_storage(self, fields: dict[str, Any]) -> None:
        if fields["storage_type"] not in SAFE_STORAGES:
            raise _Refused(
                f"storage of type {fields['storage_type']!r} is refused, it could run code or reach the network; "
                f"allowed are {', '.join(SAFE_STORAGES)}"
            )
        if fields["storage_type"] != "shar":
            fields["storage_path"] = self._resolved(fields.get("storage_path"))
            self._resolved(fields.get("storage_key"))

    def _resolved(self, name: Any) -> str:
        """A path as the manifest has it, found from the manifest's folder, which a relative one must not leave."""
        if not isinstance(name, str) or not name or "\0" in name:
            raise _Refused(f"{name!r} is not the path of a file")
        if name.startswith("pipe:") or "://" in name:
            raise _Refused(f"{name!r} is a command or an address, not the path of a file")
        if not name.startswith("/") and ".." in name.split("/"):
            raise _Refused(f"the relative path {name!r} leaves the manifest's folder; write it as an absolute path")
        return os.path.join(self.folder, name)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _fill_sources(cut: Cut, sources: list[AudioSource]) -> None:
    """Put the sources that Lhotse does not know in the place of those it was given for them."""
    if not isinstance(cut, MonoCut | MultiCut) or not cut.has_recording:
        raise ValueError("a cut of a Shar folder or a tar must have a recording of its own")
    held = cut.recording.sources
    if len(held) != len(sources) or any(source.type != "shar" for source in held):
        raise ValueError(f"a cut of a Shar folder must have one source, of type 'shar', got {held}")
    cut.recording.sources = sources


def _has_own_sources(cut: Cut, tars: list[AudioSource]) -> bool:
    """Whether a cut names its recording by itself, as in a Shar folder that has no recordings, only what was made of them."""
    recordings = [track.cut for track in cut.tracks] if isinstance(cut, MixedCut) else [cut]
    sources = [s for r in recordings if getattr(r, "has_recording", False) for s in r.recording.sources]
    return bool(tars) or all(source.type != "shar" for source in sources)


class _Shard:
    """The recordings that belong to one `cuts.N.jsonl.gz` of a Shar folder, found by name in `recording.N.tar`.

    A recording that the tar has lost keeps its placeholder, which names the reason, and is skipped when it is loaded.
    Lhotse's own reader drops such cuts, and all behind them, in silence.
    """

    def __init__(self, tar: Path) -> None:
        self.tar = tar
        self.members: dict[str, Member] = {}
        self.problem = ""
        self.absent = not tar.exists()
        try:
            for member in walk(tar):
                if member.suffix not in (".json", ".nodata", ".nometa"):
                    self.members[member.key] = member
        except (ValueError, OSError) as error:
            self.problem = str(error)

    @staticmethod
    def beside(manifest: Path) -> "_Shard | None":
        """The shard of a manifest, None where it is a manifest of its own."""
        found = SHARD_NAME.match(manifest.name)
        return _Shard(manifest.parent / f"recording.{found[1]}.tar") if found else None

    def source(self, cut: Cut) -> AudioSource:
        """Where the cut's recording lies."""
        member = self.members.get(str(Path(cut.id)))
        channels = list(cut.recording.channel_ids) if cut.has_recording else [0]
        if member is None:
            return AudioSource("shar", channels, self.problem or f"{self.tar} has no member named {cut.id}")
        return TarSlice("tar", channels, str(self.tar), offset=member.offset, size=member.size)


def _fill_language(fields: Any, language: str) -> None:
    """The source's language, for supervisions without one, in the cut or its tracks."""
    for supervision in fields.get("supervisions") or []:
        if not supervision.get("language") and language:
            supervision["language"] = language
    for track in fields.get("tracks") or []:
        _fill_language(track["cut"], language)


@contextmanager
def _atomic(path: Path) -> Iterator[IO[bytes]]:
    """`atomic_file`, packed by gzip where the name says so, the same bytes each time."""
    with atomic_file(path) as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
                yield cast(IO[bytes], packed)
        else:
            yield raw


def _relative(fields: Any, folder: str) -> Any:
    """Paths of files under `folder`, anywhere in a manifest line, made relative to it; bytes made base64."""
    if isinstance(fields, list):
        return [_relative(value, folder) for value in fields]
    if not isinstance(fields, dict):
        return fields
    made = {key: _relative(value, folder) for key, value in fields.items()}
    name = ""
    if made.get("type") in ("file", "tar"):
        name = "source"
    elif made.get("storage_type") in SAFE_STORAGES:
        name = "storage_path"
    if made.get(name):
        path = Path(os.path.abspath(made[name]))
        made[name] = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    if isinstance(made.get("source"), bytes):
        made["source"] = base64.b64encode(made["source"]).decode("ascii")
    return made
