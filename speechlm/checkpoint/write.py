"""Write a checkpoint: a copy in the host's memory, a file from there by each rank, and one rank that says it is whole.

Only `HostCopy.take` holds up the training. Everything behind it is done beside the training, by threads that talk to each other
through the folder alone: what they do can neither disturb a collective of the training nor wait for one.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.tensor import DTensor, Replicate

from speechlm.checkpoint.form import (
    COMMIT,
    MANIFEST,
    Manifest,
    Piece,
    Stored,
    Written,
    digest,
    rank_name,
    shard_name,
)
from speechlm.files import write_bytes_atomic

CHUNK = 1 << 22  # bytes written, or read back, and hashed while they are in the processor's cache
DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16",
    torch.uint8: "U8", torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True)
class Box:
    """This rank's part of a tensor: its numbers, where they begin in the whole, and the whole's shape."""

    data: Tensor
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


def boxes(tensors: Mapping[str, Tensor], first: bool) -> dict[str, Box]:
    """What a rank has to write: its shards, of which other ranks have no copy, and if it is the first what all ranks have.

    Raises:
        ValueError: a tensor is spread in a way that has no box.
    """
    made = {name: _box(name, tensor, first) for name, tensor in tensors.items()}
    return {name: box for name, box in made.items() if box is not None}


def _box(name: str, tensor: Tensor, first: bool) -> Box | None:
    if not isinstance(tensor, DTensor):
        return Box(tensor.detach(), (0,) * tensor.ndim, tuple(tensor.shape)) if first else None
    where = tensor.device_mesh.get_coordinate()
    copies = [i for i, placement in enumerate(tensor.placements) if isinstance(placement, Replicate)]
    items = create_default_local_save_plan({name: tensor}, is_coordinator=True).items
    if len(items) != 1 or any(placement.is_partial() for placement in tensor.placements):
        raise ValueError(f"{name} is spread as {tensor.placements}, of which a rank holds no single box")
    local = tensor.to_local().detach()
    if where is None or any(where[i] for i in copies) or not (local.numel() or first):
        return None
    assert items[0].tensor_data is not None
    return Box(local, tuple(items[0].tensor_data.chunk.offsets), tuple(tensor.shape))


class HostCopy:
    """Tensors side by side in the host's memory, in the order of the file they go to; the memory is used again.

    Of a GPU they come at the speed of the bus, since the memory is locked for it.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.header = b""
        self.num_bytes = 0
        self.pieces: dict[str, tuple[str, Box]] = {}

    def reserve(self, num_bytes: int, pinned: bool) -> None:
        """Have room for so many bytes; called with what is needed it takes the page faults out of the first save."""
        if num_bytes <= self._memory.numel():
            return
        self.release()
        self._memory = torch.empty(num_bytes, dtype=torch.uint8)
        if pinned:  # the allocator of pinned memory would round to the next power of two
            _check(torch.cuda.cudart().cudaHostRegister(self._memory.data_ptr(), num_bytes, 0))
        else:
            self._memory.zero_()
        self._pinned = pinned

    def release(self) -> None:
        """Give the memory back."""
        if self._memory.numel() and self._pinned:
            _check(torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr()))
        self._memory = torch.empty(0, dtype=torch.uint8)

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Box]) -> None:
        """Copy tensors; done when this returns, so that the training may change them."""
        places = self._lay_out(tensors)
        self.reserve(self.num_bytes, any(box.data.is_cuda for box in tensors.values()))
        for key, begin in places.items():
            data = tensors[key].data
            end = begin + data.numel() * data.element_size()
            self._memory[begin:end].view(data.dtype).view(data.shape).copy_(data, non_blocking=True)
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()

    def parts(self) -> list[memoryview]:
        """The file's content: what lies where, and the numbers."""
        return [memoryview(self.header), memoryview(cast(Any, self._memory.numpy()))[: self.num_bytes]]

    def _lay_out(self, tensors: Mapping[str, Box]) -> dict[str, int]:
        """Where each begins. The largest kinds of number come first, which aligns all; tied weights are there once."""
        seen: dict[tuple, str] = {}
        self.pieces, entries, places, end = {}, {}, {}, 0
        for name in sorted(tensors, key=lambda n: (-tensors[n].data.element_size(), n)):
            box = tensors[name]
            data = box.data
            if data.dtype not in DTYPE_NAMES:
                raise ValueError(
                    f"{name} is of {data.dtype}, which has no form in safetensors; {list(DTYPE_NAMES)} have"
                )
            same = (data.data_ptr() or name, data.dtype, data.shape, data.stride())
            key = seen.setdefault(same, name)
            self.pieces[name] = key, box
            if key == name:
                places[name], begin = end, end
                end += data.numel() * data.element_size()
                entries[name] = {
                    "dtype": DTYPE_NAMES[data.dtype],
                    "shape": list(data.shape),
                    "data_offsets": [begin, end],
                }
        head = json.dumps(entries).encode()
        head += b" " * (-len(head) % 8)
        self.header, self.num_bytes = len(head).to_bytes(8, "little") + head, end
        return places


def write_part(folder: Path, rank: int, copy: HostCopy, rest: Any) -> None:
    """A rank's files, on the disk and read back, and beside them for the first rank what they are.

    Args:
        folder: the temporary one, the same for all ranks.
        rank: whose.
        copy: tensors.
        rest: plain values, as JSON has them.

    Raises:
        OSError: the disk is full or broken, or gives back something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = json.dumps(rest).encode()
    files = [_write(folder / shard_name(rank), copy.parts()), _write(folder / rank_name(rank), [memoryview(values)])]
    tensors = {
        name: {
            "dtype": str(box.data.dtype).removeprefix("torch."),
            "shape": box.shape,
            "piece": asdict(Piece(rank, key, box.offsets, tuple(box.data.shape))),
        }
        for name, (key, box) in copy.pieces.items()
    }
    part = {"files": [asdict(file) for file in files], "tensors": tensors}
    write_bytes_atomic(folder / _part_name(rank), json.dumps(part).encode())


def commit(
    folder: Path,
    place: Path,
    step: int,
    world_size: int,
    vocab_hash: str | None = None,
    wait: Callable[[], None] = lambda: time.sleep(0.05),
    at: Callable[[str], None] = lambda point: None,
) -> Manifest:
    """Make a checkpoint of the parts of all ranks: wait for them, describe them, move the folder into its place, mark it.

    A kill at any moment leaves either the marked folder, or another that is passed over and what was there before.

    Args:
        folder: the temporary one.
        place: its final name; a checkpoint that is there gives way.
        step: optimizer steps taken.
        world_size: ranks whose parts are waited for.
        vocab_hash: of the vocabulary.
        wait: called while parts are missing; raises to give up.
        at: told how far it is, for tests that kill here.
    """
    parts = [_part(folder, rank, wait) for rank in range(world_size)]
    at("parts")
    manifest = _describe(parts, step, world_size, vocab_hash)
    data = manifest.to_json().encode()
    write_bytes_atomic(folder / MANIFEST, data)
    for rank in range(world_size):
        (folder / _part_name(rank)).unlink()
    flush_folder(folder)
    at("manifest")
    old = place.with_name(f".old-{place.name}")
    if place.exists():  # a folder can not be replaced in one move; the old one still counts under its other name
        remove(old)
        os.replace(place, old)
    at("aside")
    os.replace(folder, place)
    flush_folder(place.parent)
    at("moved")
    write_bytes_atomic(place / COMMIT, digest(data).encode())
    flush_folder(place)
    at("marked")
    remove(old)
    return manifest


def remove(path: Path) -> None:
    """A file, a link, or a folder with all in it; a checkpoint loses its marker first, so that it is never half one."""
    if path.is_dir() and not path.is_symlink():
        (path / COMMIT).unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Names in a folder, onto the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _part_name(rank: int) -> str:
    return f"part-{rank:05d}.json"


def _part(folder: Path, rank: int, wait: Callable[[], None]) -> dict[str, Any]:
    path = folder / _part_name(rank)
    while not path.is_file():
        wait()
    return json.loads(path.read_bytes())


def _describe(parts: list[dict[str, Any]], step: int, world_size: int, vocab_hash: str | None) -> Manifest:
    tensors: dict[str, Stored] = {}
    for part in parts:
        for name, entry in part["tensors"].items():
            piece = entry["piece"]
            made = Piece(piece["file"], piece["key"], tuple(piece["offsets"]), tuple(piece["sizes"]))
            before = tensors[name].pieces if name in tensors else ()
            tensors[name] = Stored(entry["dtype"], tuple(entry["shape"]), (*before, made))
    for name, stored in tensors.items():
        numbers = sum(math.prod(piece.sizes) for piece in stored.pieces)
        assert numbers == math.prod(stored.shape), f"{name}: {numbers} numbers in {stored}"
    shards, others = zip(*(part["files"] for part in parts), strict=True)
    files = tuple(Written(**file) for file in (*shards, *others))
    origin = {"written": datetime.now(UTC).isoformat(timespec="seconds"), "torch": torch.__version__}
    return Manifest(step, world_size, vocab_hash, files, dict(sorted(tensors.items())), origin)


def _write(path: Path, parts: list[memoryview]) -> Written:
    """Write, flush to the disk, and read back from there; the checksum is of what was to be written."""
    hashed, size = xxhash.xxh3_128(), 0
    with open(path, "wb", buffering=0) as file:
        for part in parts:
            for begin in range(0, len(part), CHUNK):
                chunk = part[begin : begin + CHUNK]
                hashed.update(chunk)
                size += _write_all(file, chunk)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that it is the disk that is read back
    found = digest_of(path)
    if found != hashed.hexdigest():
        raise OSError(f"{path}: what was written reads back otherwise ({found}, not {hashed.hexdigest()})")
    return Written(path.name, size, found)


def _write_all(file: Any, chunk: memoryview) -> int:
    done = 0
    while done < len(chunk):
        done += file.write(chunk[done:])
    return done


def digest_of(path: Path) -> str:
    """xxh3-128 of a file."""
    hashed, chunk = xxhash.xxh3_128(), memoryview(bytearray(CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(chunk):
            hashed.update(chunk[:count])
    return hashed.hexdigest()


def _check(code: Any) -> None:
    if int(code):
        raise RuntimeError(f"memory for checkpoints can not be locked for the GPU: CUDA error {int(code)}")
