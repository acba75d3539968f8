"""Read a checkpoint: every file is held against its checksum before a number of it is used, and DCP plans who needs what of it.

Any number of ranks reads what any other number wrote. `Shards` is a reader for `torch.distributed.checkpoint.load` as well.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, LoadPlan, LoadPlanner, Metadata, StorageReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.futures import Future

from speechlm.checkpoint import tree
from speechlm.checkpoint.form import Damaged, Manifest, Written, rank_name, read_manifest
from speechlm.checkpoint.write import CHUNK, DTYPE_NAMES, digest_of

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
REST = "rest."
T = TypeVar("T")


class Shards(StorageReader):
    """Tensors of a checkpoint for DCP to plan with; a file is read whole, hashed on the way, and used only if it is as written.

    Args:
        folder: the checkpoint.
        agree: whether all ranks read well, asked once all files are in memory and nothing of them is used; where one did not,
            none goes on.

    Raises:
        Damaged: the folder is no whole checkpoint.
    """

    def __init__(self, folder: str | Path, agree: Callable[[bool], bool] | None = None, verify: bool = True) -> None:
        self.folder, self.agree, self.verify = Path(folder), agree, verify
        self.manifest = read_manifest(folder)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one reading to the next."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The manifest as DCP knows it."""
        described: dict[str, Any] = {}
        places = {}
        for name, stored in self.manifest.tensors.items():
            chunks = [ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes)) for p in stored.pieces]
            properties = TensorProperties(dtype=getattr(torch, stored.dtype))
            described[name] = TensorStorageMetadata(properties, torch.Size(stored.shape), chunks)
            for piece in stored.pieces:
                places[MetadataIndex(name, torch.Size(piece.offsets))] = piece
        return Metadata(described, storage_data=places)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:
        """Where each piece lies."""
        self._places = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Any folder may be tried."""
        return True

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the files that are needed and copy from them.

        Raises:
            Damaged: a file is not what was written, here or on another rank.
        """
        needed: dict[int, list[Any]] = defaultdict(list)
        for item in plan.items:
            needed[self._places[item.storage_index].file].append(item)
        if self.agree is None:
            for number, items in sorted(needed.items()):
                self._copy(self._load(number), items, planner)
        else:
            loaded = together(
                lambda: {number: self._load(number) for number in sorted(needed)}, self.agree, self.folder
            )
            for number, tensors in loaded.items():
                self._copy(tensors, needed[number], planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _load(self, number: int) -> dict[str, Tensor]:
        return parse(read_file(self.folder, self.manifest.files[number], self.verify), self.folder)

    def _copy(self, tensors: dict[str, Tensor], items: list[Any], planner: LoadPlanner) -> None:
        for item in items:
            data = tensors[self._places[item.storage_index].key]
            for dim, (begin, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                data = data.narrow(dim, begin, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(data)
            planner.commit_tensor(item, target)


def together(read: Callable[[], T], agree: Callable[[bool], bool], folder: Path) -> T:
    """What was read, if every rank could read its part; where one could not, none goes on.

    Raises:
        Damaged: something is not what was written, here or on another rank.
    """
    made: list[T] = []
    trouble: ValueError | None = None
    try:
        made.append(read())
    except ValueError as error:
        trouble = error
    if not agree(trouble is None):
        raise trouble or Damaged(f"{folder}: another rank found damage in it")
    return made[0]


def fill(folder: str | Path, wanted: dict[str, Tensor], agree: Callable[[bool], bool] | None = None) -> Manifest:
    """Put a checkpoint's numbers into tensors, whole ones or a rank's shards of them.

    Raises:
        Damaged: a file is not what was written; with `agree` before any tensor was touched.
        ValueError: a tensor is missing, or has another shape.
    """
    reader = Shards(folder, agree)
    _check_fit(reader.manifest, wanted, Path(folder))
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    planner.set_up_planner(wanted, metadata, is_coordinator=True)
    reader.read_data(planner.finish_plan(planner.create_local_plan()), planner)
    return reader.manifest


def read_tensors(folder: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """Whole tensors by name, those that begin with a prefix, without it; what single ranks keep for themselves is not among them.

    Raises:
        Damaged: a file that is needed is not what was written.
    """
    manifest = read_manifest(folder)
    wanted = {
        name: torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))
        for name, stored in manifest.tensors.items()
        if name.startswith(prefix) and not name.startswith(REST)
    }
    fill(folder, wanted)
    return {name.removeprefix(prefix): tensor for name, tensor in wanted.items()}


def read_rest(folder: str | Path, rank: int = 0, manifest: Manifest | None = None) -> Any:
    """What a rank had to remember beside the tensors that all share.

    Raises:
        Damaged: its files are not what was written.
    """
    manifest = manifest or read_manifest(folder)
    folder, files = Path(folder), {file.name: file for file in manifest.files}
    values = json.loads(bytes(read_file(folder, files[rank_name(rank)])))
    own = f"{REST}{rank}."
    wanted = {
        name: torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))
        for name, stored in manifest.tensors.items()
        if name.startswith(own)
    }
    if wanted:
        fill(folder, wanted)
    return tree.decode(values, wanted)


def verify(folder: str | Path) -> Manifest:
    """Hold every byte against its checksum.

    Raises:
        Damaged: something is not what was written.
    """
    manifest = read_manifest(folder)
    for file in manifest.files:
        _compare(Path(folder), file, digest_of(Path(folder) / file.name))
    return manifest


def read_file(folder: Path, file: Written, check: bool = True) -> np.ndarray:
    """The bytes of a file, as they were written.

    Raises:
        Damaged: they are not.
    """
    data = np.empty(file.num_bytes, np.uint8)
    view, begin, hashed = memoryview(cast(Any, data)), 0, xxhash.xxh3_128()
    with open(folder / file.name, "rb", buffering=0) as source:
        while begin < file.num_bytes and (count := source.readinto(view[begin : begin + CHUNK])):
            if check:
                hashed.update(view[begin : begin + count])  # while it is in the processor's cache
            begin += count
    if check:
        _compare(folder, file, hashed.hexdigest())
    return data


def parse(data: np.ndarray, folder: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file in memory, without a copy.

    Raises:
        Damaged: it has not that form.
    """
    try:
        end = 8 + int.from_bytes(data[:8].tobytes(), "little")
        entries = json.loads(data[8:end].tobytes())
        numbers = torch.from_numpy(data[end:])
        return {name: _tensor(numbers, entry) for name, entry in entries.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise Damaged(f"{folder} has a shard that is no safetensors file ({error})") from error


def _tensor(numbers: Tensor, entry: Mapping[str, Any]) -> Tensor:
    (begin, end), dtype, shape = entry["data_offsets"], _DTYPES[entry["dtype"]], entry["shape"]
    if end - begin != math.prod(shape) * dtype.itemsize or end > len(numbers):
        raise ValueError(f"{entry} does not fit {len(numbers)} bytes")
    return numbers[begin:end].view(dtype).view(shape)


def _compare(folder: Path, file: Written, found: str) -> None:
    if found != file.xxh3_128:
        raise Damaged(f"{folder}: {file.name} is not what was written: its checksum is {found}, not {file.xxh3_128}")


def _check_fit(manifest: Manifest, wanted: Mapping[str, Tensor], folder: Path) -> None:
    known = manifest.tensors
    problems = [f"missing: {name} {tuple(tensor.shape)}" for name, tensor in wanted.items() if name not in known]
    problems += [
        f"shape of {name}: {tuple(tensor.shape)} is wanted, the checkpoint has {known[name].shape}"
        for name, tensor in wanted.items()
        if name in known and tuple(tensor.shape) != known[name].shape
    ]
    if problems:
        raise ValueError(f"{folder} does not fit, {len(problems)} differences:\n  " + _first(problems))


def _first(lines: Iterable[str]) -> str:
    shown = sorted(lines)
    return "\n  ".join(shown[:20] + ([f"and {len(shown) - 20} more"] if len(shown) > 20 else []))
