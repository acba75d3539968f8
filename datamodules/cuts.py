"""Lhotse cut manifests, read so that no manifest can run code, and written so that a corpus folder can move.

A line is checked by `cut_lines` before Lhotse sees it; what is refused is said with file and line.
"""

import base64
import gzip
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from lhotse import AudioSource, CutSet
from lhotse.cut import Cut, MixedCut, MonoCut, MultiCut
from lhotse.serialization import deserialize_item

from datamodules.cut_lines import SAFE_STORAGES, LineParser, Refused, TarSlice, lines
from datamodules.tars import Member, walk
from datamodules.token_folder import TokenFolder
from speechlm.files import atomic_file

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
    manifests, check = find_manifests(Path(path))
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(manifests)
    return CutSet(cast(Any, CheckedCuts(manifests, language, check)))


def find_manifests(path: Path) -> tuple[list[Path], Callable[[Path], None] | None]:
    """The manifests at a path, by name, and what checks one before it is read, where it is a folder of tokens.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is nothing that cuts are read from, or a folder of tokens that is not whole.
    """
    if not path.exists():
        raise FileNotFoundError(f"no cut manifest or folder of them at {path}")
    tokenized = TokenFolder.find(path)
    manifests = tokenized.manifests() if tokenized else manifests_of(path)
    if not manifests:
        raise ValueError(f"cuts are read from .jsonl, .jsonl.gz or a folder that has some, got {path}")
    return manifests, tokenized.check if tokenized else None


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
            parser = LineParser(path.parent)
            for number, line in enumerate(lines(path), 1):
                if not line.strip():
                    continue
                if wanted(count):
                    yield count, self._cut(parser, line, f"{path}:{number}", shard)
                count += 1

    def _cut(self, parser: "LineParser", line: bytes, where: str, shard: "_Shard | None") -> Cut:
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
        except Refused as error:
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


def manifests_of(path: Path) -> list[Path]:
    """Manifests of a folder by name, or the one that a path is; none where there is none."""
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    manifests = [p for p in found if p.name.endswith((".jsonl", ".jsonl.gz")) and not p.name.startswith(".")]
    # In a Shar folder the other .jsonl files are fields, not cuts.
    return [p for p in manifests if SHARD_NAME.match(p.name)] or manifests


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
