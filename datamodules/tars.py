"""Members of a tar file, listed without unpacking anything: names checked, sizes bounded, kept where they are."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MAX_MEMBER_BYTES = 256 * 2**20
BLOCK = 512


@dataclass(frozen=True)
class Member:
    """One file inside a tar: its name and where its bytes lie in the tar."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """The name without its last extension: what the files of one recording share."""
        return str(PurePosixPath(self.name).with_suffix(""))

    @property
    def suffix(self) -> str:
        """The last extension, lower-cased, with its dot."""
        return PurePosixPath(self.name).suffix.lower()


def walk(path: str | Path, max_bytes: int = MAX_MEMBER_BYTES) -> Iterator[Member]:
    """Files of an uncompressed tar in order; headers are read, contents are passed over.

    Raises:
        ValueError: the file is no plain tar, is cut short or damaged, or has a member that only an attack would have: a
            link, a device, a sparse file, a name that leaves the folder, more than `max_bytes`.
    """
    path = Path(path)
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if not info.isdir():
                    yield _checked(info, path, max_bytes)
            end = tar.offset
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise ValueError(f"{path} is no readable uncompressed tar ({error}); fetch it again") from error
    # tarfile takes a damaged header, or the end of a file cut between two members, for the end of the archive.
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise ValueError(f"{path} has no end mark at byte {end}: it is cut short or damaged there; fetch it again")


def read_member(path: str | Path, offset: int, size: int) -> bytes:
    """The bytes of one member.

    Raises:
        EOFError: the tar ends before them.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise EOFError(f"{path} ends {size - len(data)} bytes before the member at byte {offset} does")
    return data


def _checked(info: tarfile.TarInfo, path: Path, max_bytes: int) -> Member:
    name = PurePosixPath(info.name)
    problem = ""
    if name.is_absolute() or ".." in name.parts or "\0" in info.name:
        problem = "its name leaves the folder"
    elif info.issym() or info.islnk():
        problem = f"it is a link to {info.linkname!r}"
    elif info.issparse():
        problem = "it is a sparse file"
    elif not info.isreg():
        problem = "it is a device or another special file"
    elif info.size > max_bytes:
        problem = f"it has {info.size} bytes, more than the {max_bytes} allowed"
    if problem:
        raise ValueError(f"{path}: member {info.name!r} is refused, {problem}")
    return Member(str(name), info.offset_data, info.size)
