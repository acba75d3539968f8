"""torch's own files, read without trusting them: nothing in one is run, and none unfolds to more than it is on the disk."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_DEPTH = 64  # of containers in containers


def read_pt(path: str | Path, mmap: bool = False) -> Any:
    """The content of a .pt, .ckpt or .bin file, on the CPU.

    `weights_only` keeps pickles from running code. What is refused beyond that: compressed members, of which a few kilobytes
    unfold to any size, and tensors that claim more numbers than they have, which grow when they are first copied.

    Args:
        path: the file.
        mmap: leave tensors on the disk until they are used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it can not be read safely; with the reason.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if zipfile.is_zipfile(path):
            _check_members(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap or None)
        _check_sizes(content, path.stat().st_size)
    except Exception as error:  # torch raises whatever the bytes suggest
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} can not be read safely ({first})") from error
    return content


def _check_members(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        packed = [member.filename for member in file.infolist() if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"{packed[0]!r} in it is compressed, which torch never writes")


def _check_sizes(content: Any, file_bytes: int, depth: int = 0) -> None:
    """Every tensor lies in as many bytes as it has, and all of those are in the file."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it has more than {MAX_DEPTH} containers inside of each other")
    if isinstance(content, Tensor) and not content.is_meta:
        claimed = content.numel() * content.element_size()
        if claimed > content.untyped_storage().nbytes() or claimed > file_bytes:
            raise ValueError(f"a tensor of the shape {tuple(content.shape)} claims {claimed} bytes that are not there")
    children = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    for child in children:
        _check_sizes(child, file_bytes, depth + 1)
