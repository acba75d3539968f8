"""Cut manifests one after another, in shards of so many cuts: what a folder that is made from them shard by shard counts by."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ManifestCount:
    """One manifest that goes in."""

    path: str
    cuts: int
    sha256: str


@dataclass(frozen=True)
class CutShards:
    """What a folder is made from.

    Args:
        manifests: cut manifests in order.
        shard_size: cuts in a shard; shard i is cuts [i, i + 1) * shard_size of all manifests one after another.
    """

    manifests: tuple[ManifestCount, ...]
    shard_size: int

    @property
    def num_cuts(self) -> int:
        """Of all manifests."""
        return sum(manifest.cuts for manifest in self.manifests)

    @property
    def num_shards(self) -> int:
        """The last one may be shorter."""
        return -(-self.num_cuts // self.shard_size)

    def shard_length(self, shard: int) -> int:
        """Cuts in a shard."""
        return min(self.shard_size, self.num_cuts - shard * self.shard_size)

    def _manifest_rows(self) -> list[list[Any]]:
        return [[m.path, m.cuts, m.sha256] for m in self.manifests]
