"""Pseudo-labels of a corpus, as a folder: what was heard in every recording, and the manifests of what can be trusted.

    labels.json              what it is made with: manifests, model, settings
    heard/000000.json        what the model heard in the cuts of a shard, whatever it is worth
    cuts/000000.jsonl.gz     those worth training on, as cuts with a supervision; this folder is what a config names
    chosen/000000.json       how many were chosen, by which thresholds; written last
    summary.json             all shards together, once all are there

`heard` costs hours of computing, the rest is made from it in seconds, again with each start, so that thresholds can be changed.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datamodules.cut_shards import CutShards
from datamodules.sealed import begin, read_sealed, seal_of, write_sealed
from speechlm.conservation import Account

HEADER, HEARD, CUTS, CHOSEN, SUMMARY = "labels.json", "heard", "cuts", "chosen", "summary.json"


@dataclass(frozen=True)
class LabelPlan(CutShards):
    """What a folder of labels is made with.

    Args:
        manifests: see `CutShards`.
        shard_size: see `CutShards`.
        model: name of the recogniser.
        model_hash: of its weights.
        settings: that labels depend on.
    """

    model: str
    model_hash: str
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "manifests": self._manifest_rows()}


@dataclass
class Counts:
    """What became of the cuts: in = heard + skipped; and of the stretches they were heard in = kept + left out."""

    cuts_in: int = 0
    heard: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    stretches: int = 0
    kept: int = 0
    seconds: float = 0.0
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Counts") -> None:
        """Add another's."""
        for name in ("cuts_in", "heard", "stretches", "kept", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.skipped += other.skipped
        self.left_out += other.left_out

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "skipped": dict(self.skipped), "left_out": dict(self.left_out)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Counts":
        """Back from plain values."""
        return cls(**{**fields, "skipped": Counter(fields["skipped"]), "left_out": Counter(fields["left_out"])})

    @property
    def accounts(self) -> tuple[Account, Account]:
        """Of the recordings, and of the stretches they were heard in."""
        kept = f"kept ({self.seconds / 3600:.2f} h)"
        return (
            Account("recordings", self.cuts_in, self.heard, self.skipped, ("in", "heard", "skipped")),
            Account("stretches", self.stretches, self.kept, self.left_out, ("in", kept, "left out")),
        )

    def __str__(self) -> str:
        return "; ".join(map(str, self.accounts))


@dataclass(frozen=True)
class LabelFolder:
    """A folder of labels that has been begun.

    Args:
        path: the folder.
        plan: what it is made with.
    """

    path: Path
    plan: LabelPlan

    @staticmethod
    def start(path: str | Path, plan: LabelPlan) -> "LabelFolder":
        """The folder at `path`, begun where there is none.

        Raises:
            ValueError: it was begun with something else; naming both sides.
        """
        path = Path(path)
        begin(path / HEADER, plan.to_dict())
        return LabelFolder(path, plan)

    @property
    def seal(self) -> str:
        """Of the plan."""
        return seal_of(self.plan.to_dict())

    def cuts_path(self, shard: int) -> Path:
        """Manifest of a shard."""
        return self.path / CUTS / f"{shard:06d}.jsonl.gz"

    def heard(self, shard: int) -> dict[str, Any] | None:
        """What was heard in a shard; None where there is nothing, or nothing whole."""
        return self._read(self.path / HEARD / f"{shard:06d}.json")

    def write_heard(self, shard: int, content: dict[str, Any]) -> dict[str, Any]:
        """Keep what was heard in a shard."""
        content = {"made_with": self.seal, **content}
        write_sealed(self.path / HEARD / f"{shard:06d}.json", content)
        return content

    def write_chosen(self, shard: int, thresholds: dict[str, float], counts: Counts) -> None:
        """Keep what was chosen of a shard."""
        content = {"made_with": self.seal, "thresholds": thresholds, "counts": counts.to_dict()}
        write_sealed(self.path / CHOSEN / f"{shard:06d}.json", content)

    def summarise(self, thresholds: dict[str, float]) -> Counts | None:
        """Add up all shards and write the summary; None while some are not there, or chosen by other thresholds."""
        total = Counts()
        for shard in range(self.plan.num_shards):
            chosen = self._read(self.path / CHOSEN / f"{shard:06d}.json")
            if chosen is None or chosen["thresholds"] != thresholds:
                return None
            total.add(Counts.from_dict(chosen["counts"]))
        for account in total.accounts:
            account.require(str(self.path))
        Account("recordings", self.plan.num_cuts, total.cuts_in, words=("planned", "in", "lost")).require(
            str(self.path)
        )
        write_sealed(
            self.path / SUMMARY, {"model": self.plan.model, "thresholds": thresholds, "counts": total.to_dict()}
        )
        return total

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            content = read_sealed(path)
        except (FileNotFoundError, ValueError):
            return None
        return content if content.get("made_with") == self.seal else None
