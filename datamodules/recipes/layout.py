"""Is this folder that corpus? Asked before anything is read, and answered with what was expected and what is there."""

import itertools
from collections.abc import Sequence
from pathlib import Path

SHOWN = 8


def require(corpus: Path, wanted: Sequence[str], name: str, source: str) -> None:
    """Refuse a folder that lacks one of the files or folders a corpus unpacks to.

    Args:
        corpus: the folder.
        wanted: paths inside it; "*" stands for any name.
        name: of the corpus.
        source: where to fetch it.

    Raises:
        ValueError: naming what is missing, and what is there instead.
    """
    missing = [path for path in wanted if not any(corpus.glob(path))]
    if missing:
        raise ValueError(
            f"{corpus} is not {name} as it unpacks: there is no {', '.join(missing)} in it; {_found(corpus)}. "
            f"Name the folder that has {', '.join(wanted)}, or fetch the corpus from {source}"
        )


def require_parts(corpus: Path, parts: Sequence[str] | None, known: Sequence[str], name: str, source: str) -> list[str]:
    """The parts that were asked for, or those that are there, of a corpus with a folder for each.

    Raises:
        ValueError: one that was asked for is not there, or none is.
    """
    there = [part for part in known if (corpus / part).is_dir()]
    missing = [part for part in parts or [] if part not in there]
    if missing or not there:
        raise ValueError(
            f"there is no {', '.join(missing) or 'part of ' + name} at {corpus}; {_found(corpus)}. Its parts are "
            f"{', '.join(known)}; fetch them from {source} and unpack them"
        )
    return list(parts or there)


def _found(corpus: Path) -> str:
    if not corpus.is_dir():
        return "it is a file" if corpus.exists() else "there is no such folder"
    names = sorted(path.name + "/" * path.is_dir() for path in itertools.islice(corpus.iterdir(), 1000))
    return f"it has {', '.join(names[:SHOWN]) or 'nothing'}{', …' if len(names) > SHOWN else ''}"
