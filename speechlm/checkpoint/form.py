"""What a checkpoint is on the disk, and how one tells a whole one from any other folder.

step-00001000.ckpt/
  shard-00000.safetensors   what rank 0 wrote of weights and optimizers, and its own tensors; a file a rank
  rank-00000.json           what else rank 0 has to remember: loops, schedules, callbacks; plain values
  manifest.json             step and vocabulary, where each piece of each tensor lies, size and checksum of every file above
  COMMIT                    checksum of the manifest; written last

No file of it is a pickle, so that reading one can run nothing. `torch.distributed.checkpoint` (DCP) plans which piece goes where
when it is read, on any number of ranks; its own files are not used: its `.metadata` is a pickle that is loaded unsafely, its
shards carry no checksum, and writing them takes collectives, which are not for a thread beside a training.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

FORMAT = 1
MANIFEST, COMMIT = "manifest.json", "COMMIT"
STEP_NAME = re.compile(r"(?:\.old-)?step-(\d+)\.ckpt")  # one is aside while another takes its place


class Damaged(ValueError):
    """A checkpoint is not what was written."""


@dataclass(frozen=True)
class Piece:
    """A box of a tensor: which file has it under which name, where it begins in the tensor, and its size."""

    file: int
    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor and its pieces; together they are all of it."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Written:
    """A file as it was written."""

    name: str
    num_bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is made of.

    Args:
        step: optimizer steps taken.
        world_size: ranks that wrote it.
        vocab_hash: of the vocabulary that its weights know; null without one.
        files: every other file, the shards first, a rank each.
        tensors: by name.
        origin: when it was written, by which versions.
        format: of the folder.
    """

    step: int
    world_size: int
    vocab_hash: str | None
    files: tuple[Written, ...]
    tensors: dict[str, Stored]
    origin: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        """One line a tensor, so that a person can read it."""
        head = {
            "format": self.format,
            "step": self.step,
            "world_size": self.world_size,
            "vocab_hash": self.vocab_hash,
            "origin": self.origin,
            "files": [asdict(file) for file in self.files],
        }
        lines = [f"{json.dumps(name)}: {json.dumps(_short(stored, name))}" for name, stored in self.tensors.items()]
        return json.dumps(head, indent=1)[:-2] + ',\n "tensors": {\n  ' + ",\n  ".join(lines) + "\n }\n}\n"


def step_name(step: int) -> str:
    """The folder of a step."""
    return f"step-{step:08d}.ckpt"


def shard_name(rank: int) -> str:
    """The tensors of a rank."""
    return f"shard-{rank:05d}.safetensors"


def rank_name(rank: int) -> str:
    """The plain values of a rank."""
    return f"rank-{rank:05d}.json"


def digest(data: bytes) -> str:
    """xxh3-128: finds every flipped bit, at the speed of memory; no protection from somebody who means harm."""
    return xxhash.xxh3_128_hexdigest(data)


def is_checkpoint(path: str | Path) -> bool:
    """Whether a folder has this form, whole or not."""
    return (Path(path) / MANIFEST).is_file()


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest, held against the commit marker, and every file against its size.

    Raises:
        Damaged: the checkpoint was never finished, or something of it is missing, cut or changed.
        ValueError: it was written by a version that this one does not know.
    """
    folder = Path(folder)
    try:
        data = (folder / MANIFEST).read_bytes()
        marker = (folder / COMMIT).read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise Damaged(f"{folder} is no finished checkpoint: {Path(error.filename).name} can not be read") from error
    if marker != digest(data):
        raise Damaged(f"{folder}: {MANIFEST} is not what was written: its checksum is {digest(data)}, not {marker}")
    manifest = _parse(json.loads(data), folder)
    for file in manifest.files:
        path = folder / file.name
        size = path.stat().st_size if path.is_file() else None
        if size != file.num_bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise Damaged(f"{folder}: {file.name} {found}, {file.num_bytes} bytes were written")
    return manifest


def checkpoints_in(folder: str | Path) -> list[Path]:
    """Folders and files named after a step, the newest first, whole or not."""
    found = [path for path in Path(folder).glob("*step-*.ckpt") if STEP_NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (step_of(path), not path.name.startswith(".")), reverse=True)


def step_of(path: Path) -> int:
    """The step in a name."""
    found = STEP_NAME.fullmatch(path.name)
    assert found is not None, path
    return int(found[1])


def _short(stored: Stored, name: str) -> dict[str, Any]:
    pieces = [[p.file, None if p.key == name else p.key, p.offsets, p.sizes] for p in stored.pieces]
    return {"dtype": stored.dtype, "shape": stored.shape, "pieces": pieces}


def _parse(content: dict[str, Any], folder: Path) -> Manifest:
    if content["format"] != FORMAT:
        raise ValueError(
            f"{folder} is a checkpoint of format {content['format']}, this version reads {FORMAT}; go on with the version that "
            f"wrote it: {content['origin']}"
        )
    tensors = {
        name: Stored(
            stored["dtype"],
            tuple(stored["shape"]),
            tuple(Piece(file, key or name, tuple(at), tuple(size)) for file, key, at, size in stored["pieces"]),
        )
        for name, stored in content["tensors"].items()
    }
    files = tuple(Written(**file) for file in content["files"])
    return Manifest(
        content["step"], content["world_size"], content["vocab_hash"], files, tensors, content["origin"], FORMAT
    )
