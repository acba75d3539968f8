"""Lines of files, plain or compressed, none longer than a bound, whatever a compressed file unfolds to."""

import gzip
import importlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def bounded_lines(path: Path, max_bytes: int) -> Iterator[bytes]:
    """Lines of a file, by its ending plain, gzip (.gz) or zstandard (.zst).

    Raises:
        ValueError: the file is cut short or damaged, a line is longer than `max_bytes`, or zstandard is not installed.
    """
    try:
        with _opened(path) as file:
            while line := file.readline(max_bytes + 1):
                if len(line) > max_bytes:
                    raise ValueError(f"{path} has a line of more than {max_bytes} bytes")
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); fetch or write it again") from error


def optional(module: str, package: str, path: Path) -> Any:
    """A module that only some files need.

    Raises:
        ValueError: its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"reading {path} needs {package}: pip install {package}") from None


def _opened(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        zstandard = optional("zstandard", "zstandard", path)
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(open(path, "rb"), closefd=True))
    return open(path, "rb")
