"""Lines of Lhotse cut manifests, held against short lists of what is harmless before Lhotse sees them.

Lhotse itself lets a manifest run shell commands (audio sources of type "command", paths named "pipe:…", Kaldi archives),
fetch addresses ("url") and unpickle ("memory_raw" arrays, "pillow_memory" images). Nothing of the kind passes here: what the
lists do not name is refused.

Beside Lhotse's own "file", "memory" (base64 in JSON) and "shar", a source may have the type "tar", with `offset` and `size`
in bytes: a member of an uncompressed tar, read where it lies, so that a corpus made of tars is never unpacked nor copied.
Likewise an array may have the storage "tar_npy", see `tar_arrays`.
"""

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from lhotse import AudioSource

from datamodules import tar_arrays
from datamodules.bounded_lines import bounded_lines
from datamodules.tars import MAX_MEMBER_BYTES, read_member

SAFE_SOURCES = ("file", "memory", "shar", "tar")
SAFE_STORAGES = ("lilcom_chunky", "lilcom_files", "numpy_files", "shar", tar_arrays.STORAGE)  # read without pickle
CUT_TYPES = ("MonoCut", "MultiCut", "MixedCut")
MAX_LINE_BYTES = 64 * 2**20  # no cut is that long
TAR_KEY = "tar sources"


@dataclass
class TarSlice(AudioSource):
    """An encoded recording inside an uncompressed tar, read where it lies."""

    offset: int = 0
    size: int = 0

    def _prepare_for_reading(self, offset: float, duration: float | None) -> BytesIO:
        return BytesIO(read_member(cast(str, self.source), self.offset, self.size))


class Refused(ValueError):
    """Something that could run code, reach the network or leave the folder."""


def lines(path: Path) -> Iterator[bytes]:
    """Lines of a manifest, none of them longer than `MAX_LINE_BYTES`."""
    return bounded_lines(path, MAX_LINE_BYTES)


class LineParser:
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
                raise Refused("a source of type 'tar' is read only as the recording of a MonoCut or MultiCut")
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
            raise Refused(
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
            raise Refused(f"a source of type 'tar' has a path, and an offset and a size in bytes, got {source}")
        if source["size"] > MAX_MEMBER_BYTES:
            raise Refused(f"a recording of {source['size']} bytes is more than the {MAX_MEMBER_BYTES} allowed")
        path = self._resolved(source.get("source"))
        return TarSlice("tar", list(source["channels"]), path, offset=source["offset"], size=source["size"])

    def _check_storage(self, fields: dict[str, Any]) -> None:
        if fields["storage_type"] not in SAFE_STORAGES:
            raise Refused(
                f"storage of type {fields['storage_type']!r} is refused, it could run code or reach the network; "
                f"allowed are {', '.join(SAFE_STORAGES)}"
            )
        if fields["storage_type"] != "shar":
            fields["storage_path"] = self._resolved(fields.get("storage_path"))
            self._resolved(fields.get("storage_key"))

    def _resolved(self, name: Any) -> str:
        """A path as the manifest has it, found from the manifest's folder, which a relative one must not leave."""
        if not isinstance(name, str) or not name or "\0" in name:
            raise Refused(f"{name!r} is not the path of a file")
        if name.startswith("pipe:") or "://" in name:
            raise Refused(f"{name!r} is a command or an address, not the path of a file")
        if not name.startswith("/") and ".." in name.split("/"):
            raise Refused(f"the relative path {name!r} leaves the manifest's folder; write it as an absolute path")
        return os.path.join(self.folder, name)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
