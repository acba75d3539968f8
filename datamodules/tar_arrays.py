"""Arrays that are members of an uncompressed tar, read where they lie: Lhotse's storage type "tar_npy".

What the source type "tar" is to recordings: `storage_path` is the tar, `storage_key` is "offset:size" of an .npy member in bytes.
Nothing is unpacked and nothing unpickled, and a cut that has such an array can be truncated, pickled and written to a manifest.
"""

import io
import tokenize
from typing import Any

import numpy as np
from lhotse.array import Array, TemporalArray
from lhotse.features.io import FeaturesReader, register_reader

from datamodules.tars import MAX_MEMBER_BYTES, read_member

STORAGE = "tar_npy"


@register_reader
class TarNpyReader(FeaturesReader):
    """Reads what `tar_array` describes.

    Args:
        storage_path: the tar.
    """

    name = STORAGE

    def __init__(self, storage_path: str, *args: Any, **kwargs: Any) -> None:
        self.storage_path = storage_path

    def read(self, key: str, left_offset_frames: int = 0, right_offset_frames: int | None = None) -> np.ndarray:
        """The array, or its part between two indices of the first axis.

        Raises:
            ValueError: the key is not of this storage, or there is no .npy of plain numbers.
            EOFError: the tar ends before the member does.
        """
        offset, _, size = key.partition(":")
        if not (offset.isdecimal() and size.isdecimal() and int(size) <= MAX_MEMBER_BYTES):
            raise ValueError(f"{key!r} is no member of {self.storage_path}, expected offset:size in bytes")
        data = read_member(self.storage_path, int(offset), int(size))
        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except (SyntaxError, tokenize.TokenError) as error:  # a header that is no Python literal
            raise ValueError(f"{self.storage_path} at {key} is no .npy: {error}") from error
        return array[left_offset_frames:right_offset_frames]


def tar_array(
    tar: str, offset: int, size: int, shape: tuple[int, ...], frame_shift_sec: float, start_sec: float
) -> TemporalArray:
    """An array over time, whose .npy lies in a tar, as a cut carries it.

    Args:
        tar: path.
        offset: of the .npy in the tar, in bytes.
        size: in bytes.
        shape: of the array; time is the first axis.
        frame_shift_sec: seconds from one entry to the next.
        start_sec: where the first entry lies in the recording.
    """
    array = Array(storage_type=STORAGE, storage_path=tar, storage_key=f"{offset}:{size}", shape=list(shape))
    return TemporalArray(array, temporal_dim=0, frame_shift=frame_shift_sec, start=start_sec)
