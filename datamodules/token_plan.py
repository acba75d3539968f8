"""Which cuts make which shard: a function of the manifests and the size of a shard, whatever the number of ranks."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from lhotse.cut import Cut, MonoCut, MultiCut

from datamodules.cut_lines import lines
from datamodules.cut_shards import CutShards, ManifestCount
from datamodules.cuts import CheckedCuts, find_manifests
from datamodules.token_folder import Header, TokenFolder


@dataclass
class ShardCuts:
    """The cuts of one shard, and what may not go on to be tokenized."""

    index: int
    cuts: list[Cut] = field(default_factory=list)
    skipped: dict[int, tuple[str, str]] = field(default_factory=dict)  # position -> reason, where and what


def count_manifests(paths: Sequence[str], known: Sequence[ManifestCount] = ()) -> tuple[ManifestCount, ...]:
    """Manifests, folders of them and Shar folders -> their manifests in order, each with its number of cuts.

    Args:
        paths: as `read_cuts` takes them.
        known: counts of earlier; a manifest with the same bytes is not unpacked again.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: nothing that cuts are read from is there, a manifest is damaged, or comes twice.
    """
    counts = {(m.path, m.sha256): m.cuts for m in known}
    found: list[ManifestCount] = []
    for manifest in (m for path in paths for m in find_manifests(Path(path))[0]):
        with open(manifest, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        cuts = counts.get((str(manifest), sha256))
        if cuts is None:
            cuts = sum(1 for line in lines(manifest) if line.strip())
        found.append(ManifestCount(str(manifest), cuts, sha256))
    _refuse_repeated(found)
    if not any(m.cuts for m in found):
        raise ValueError(f"there is no cut in {', '.join(paths)}")
    return tuple(found)


def shards(header: Header, wanted: Callable[[int], bool]) -> Iterator[ShardCuts]:
    """The wanted shards of `cuts_by_shard`; cuts that can not carry tokens, or not safely, are skipped by name."""
    for index, cuts in cuts_by_shard(header, wanted):
        shard = ShardCuts(index, cuts)
        names: set[str] = set()
        for position, cut in enumerate(cuts):
            reason = _unfit(cut) or ("duplicate id" if cut.id in names else "")
            names.add(cut.id)
            if reason:
                shard.skipped[position] = (reason, _ADVICE[reason])
        yield shard


def cuts_by_shard(plan: CutShards, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Cut]]]:
    """The wanted shards in order, with their cuts; lines of other shards are passed over unread, other manifests unopened.

    Raises:
        ValueError: a line is no cut, or could run code, with file and line; or a manifest has changed since it was counted.
    """
    for index, numbered in groupby(_numbered(plan, wanted), key=lambda pair: pair[0] // plan.shard_size):
        cuts, planned = [cut for _, cut in numbered], plan.shard_length(index)
        if len(cuts) != planned:
            raise ValueError(f"shard {index} has {len(cuts)} cuts instead of {planned}: a manifest has changed")
        yield index, cuts


def _numbered(plan: CutShards, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Cut]]:
    """Cuts of wanted shards with their numbers over all manifests."""
    first = 0
    for manifest in plan.manifests:
        begin, end = first, first + manifest.cuts
        last_shard = max(begin, end - 1) // plan.shard_size
        if manifest.cuts and any(wanted(shard) for shard in range(begin // plan.shard_size, last_shard + 1)):
            path = Path(manifest.path)
            tokenized = TokenFolder.find(path.parent)
            cuts = CheckedCuts([path], check=tokenized.check if tokenized else None)
            for number, cut in cuts.numbered(lambda n, begin=begin: wanted((begin + n) // plan.shard_size)):  # type: ignore[misc]
                if begin + number >= end:
                    raise ValueError(f"{path} has more than the {manifest.cuts} cuts it had when the work was planned")
                yield begin + number, cut
        first = end


_ADVICE = {
    "mixed cut": "only a MonoCut or MultiCut can carry tokens of its own; save the mix as a recording first",
    "unsafe id": "an absolute path, '..' or a null byte in an id would lead out of the folder where a tar is unpacked",
    "duplicate id": "another cut of the same shard has this id",
}


def _unfit(cut: Cut) -> str:
    if not isinstance(cut, MonoCut | MultiCut):
        return "mixed cut"
    name = cut.id
    return "unsafe id" if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name else ""


def _refuse_repeated(manifests: list[ManifestCount]) -> None:
    seen: dict[str, str] = {}
    for manifest in manifests:
        if manifest.cuts and manifest.sha256 in seen:
            raise ValueError(
                f"{manifest.path} has the same cuts as {seen[manifest.sha256]}; list it once, or all of it would be there twice"
            )
        seen[manifest.sha256] = manifest.path
