"""A folder that `python -m speechlm.synthesize` makes of a text source, read shard by shard, each document beside its text."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.documents import Raw, read_documents
from datamodules.interleaved import Interleaved, Making, read_interleaved, read_making
from datamodules.sealed import read_sealed, seal_of

JOB = "job.json"


class MadeShard(NamedTuple):
    """A shard that is there.

    Attributes:
        path: of its documents.
        file: number of the source file it is of.
        number: which of that file's shards it is.
        counts: of documents, spans and ids, as the job counted.
        reasons: how many documents and spans were left out, by reason.
    """

    path: Path
    file: int
    number: int
    counts: dict[str, int]
    reasons: dict[str, int]


class InterleavedFolder:
    """One source's interleaved documents.

    Args:
        folder: with a job.json.

    Raises:
        ValueError: it has none, it is damaged, or it is of spoken dialogues.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / JOB).is_file():
            raise ValueError(
                f"{folder} has no {JOB}; name a folder that python -m speechlm.synthesize made of a source"
            )
        self.job: dict[str, Any] = read_sealed(self.folder / JOB)
        if "chats" in self.job:
            raise ValueError(f"{folder} has spoken dialogues, which are no interleaved documents")
        self._seal = seal_of(self.job)
        self.damaged: dict[str, str] = {}  # names of shards that were not read, and why

    @property
    def complete(self) -> bool:
        """Whether every shard was made, as far as the folder says."""
        try:
            ends = [read_sealed(self.folder / f"{n:05d}.json")["shards"] for n in range(len(self.job["files"]))]
        except (FileNotFoundError, ValueError):
            return False
        return sum(ends) == len(self._paths())

    def shards(self, limit: int | None = None) -> Iterator[MadeShard]:
        """Shards in order, the first `limit` of them; one that is damaged or of another job goes to `damaged`."""
        for path in self._paths()[:limit]:
            try:
                commit = read_sealed(path.with_suffix(".json"))
                if commit["made_with"] != self._seal:
                    raise ValueError("it was made with other settings than job.json says")
                file, number = map(int, path.stem.split("-"))
            except (FileNotFoundError, ValueError) as error:
                self.damaged[path.name] = str(error)
                continue
            yield MadeShard(path, file, number, commit["counts"], commit["reasons"])

    def making(self) -> Making | None:
        """What the ids and codes mean, by the first shard; None where there is none.

        Raises:
            ValueError: the shard is damaged.
        """
        paths = self._paths()
        return read_making(paths[0]) if paths else None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*-[0-9]*.safetensors"))


class Texts:
    """The texts that a folder's documents were made of, read forward beside its shards."""

    def __init__(self, folder: InterleavedFolder) -> None:
        self.job = folder.job
        self.missing = ""  # why texts can not be had
        self._file, self._at, self._raws = -1, 0, iter(tuple[Raw]())

    def of(self, shard: MadeShard) -> Iterator[tuple[Interleaved, str | None]]:
        """A shard's documents in order, each with its text; None where the source is no more what it was.

        Raises:
            ValueError: the shard is damaged.
        """
        raws = iter(self._next(shard))
        for document in read_interleaved(shard.path):
            found = (raw.text for raw in raws if raw.id == document.id and _fits(document, raw.text))
            yield document, next(found, None)

    def _next(self, shard: MadeShard) -> list[Raw]:
        """The source's documents for a shard."""
        size = self.job["settings"]["shard_documents"]
        try:
            if shard.file != self._file:
                self._raws, self._file, self._at = self._read(shard.file), shard.file, 0
            skipped = (shard.number - self._at) * size
            raws = list(itertools.islice(self._raws, skipped, skipped + size))
        except (OSError, ValueError) as error:
            self.missing, raws = str(error), []
        self._at = shard.number + 1
        return raws

    def _read(self, file: int) -> Iterator[Raw]:
        """Documents of a source file, as the job read them."""
        path, size = self.job["files"][file]
        if Path(path).stat().st_size != size:
            raise ValueError(f"{path} has another size than when the documents were made")
        source, room = self.job["source"], self.job["settings"]["max_document_chars"]
        documents = read_documents(Path(path), "text", source["text_field"], source["id_field"])
        for raw in itertools.islice(documents, source["max_documents"]):
            raw.text, raw.id = raw.text[:room], raw.id.replace("\0", "\ufffd")
            yield raw


def _fits(document: Interleaved, text: str) -> bool:
    return document.chars is not None and bool(document.chars) and document.chars[-1][1] == len(text)
