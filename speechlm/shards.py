"""Weights out of a checkpoint that was written in shards, one file a rank, without trusting it."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

METADATA = ".metadata"
PREFIX = "state_dict."
_DESCRIPTIONS = "torch.distributed.checkpoint.metadata"  # dataclasses and an enumeration, all of them harmless
_NAMES = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # from Python 3.13 on
}


class _PlainUnpickler(pickle.Unpickler):
    """Knows the values that describe shards and nothing that could do anything."""

    def find_class(self, module: str, name: str) -> Any:
        """A class by its name.

        Raises:
            ValueError: it is none of those that torch writes.
        """
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or (module, name) in _NAMES:
            return super().find_class(module, name)
        if module == _DESCRIPTIONS and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise ValueError(f"it names {module}.{name}, which no checkpoint needs")


def is_sharded(path: str | Path) -> bool:
    """Whether a folder is a checkpoint in shards."""
    return (Path(path) / METADATA).is_file()


def read_metadata(folder: str | Path) -> Metadata:
    """What is in the shards.

    torch reads this file as a pickle, which can run anything; whatever is resumed from goes through here first.

    Raises:
        ValueError: the file is damaged, or holds more than a description.
    """
    path = Path(folder) / METADATA
    try:
        with open(path, "rb") as file:
            metadata = _PlainUnpickler(file).load()
    except Exception as error:  # pickle raises whatever the bytes suggest
        raise ValueError(f"{path} can not be read safely: {error}") from error
    if not isinstance(metadata, Metadata):
        raise ValueError(f"{path} holds a {type(metadata).__name__}, no description of shards")
    return metadata


def read_shards(folder: str | Path) -> dict[str, Tensor]:
    """Every tensor of the model, whole, by name; the optimizer's stay on the disk.

    Raises:
        ValueError: the folder is damaged.
    """
    described = read_metadata(folder).state_dict_metadata
    wanted = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in described.items()
        if name.startswith(PREFIX) and isinstance(entry, TensorStorageMetadata)
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one process is what is meant
            dcp.load(wanted, storage_reader=dcp.FileSystemReader(Path(folder)), no_dist=True)
    except (Exception, dcp.CheckpointException) as error:  # a missing file, a short one, and more
        raise ValueError(f"the shards in {folder} can not be read: {_reason(error)}") from error
    return {name.removeprefix(PREFIX): tensor for name, tensor in wanted.items()}


def _reason(error: BaseException) -> str:
    """What went wrong at the bottom of it."""
    failures = getattr(error, "failures", {})
    first = next(iter(failures.values()))[0] if failures else error
    return f"{type(first).__name__} {first}".strip()
