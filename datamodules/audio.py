"""Cuts in, `AudioBatch`es out: bucketed by seconds, mixed by weights, the same order for the same seed, resumable anywhere."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, cast

import lightning as L
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.audio_batches import (
    AudioDataset,
    CountedLoader,
    HeardSeconds,
    ResumedSampler,
    UsableCuts,
    every_epoch,
    seconds_heard,
    text_of,
)
from datamodules.augment import Augmentation
from datamodules.cuts import CutSource, read_cuts
from datamodules.recordings import Skips
from datamodules.resume import position
from datamodules.worker_signals import heed_the_parent_alone
from speechlm.tokens.clock import Clock

CUTS_FOR_BUCKETS = 10_000  # whose durations set the limits of the buckets
ORDER_SETTINGS = (
    "seed", "shuffle", "epochs", "batch_seconds", "max_seconds", "min_seconds", "num_buckets", "buffer_size",
)  # fmt: skip


class AudioDataModule(L.LightningDataModule):
    """Recordings with transcripts for training, and named sets of them for validation.

    Each recording is the first channel of its cut (channel 0 of a file, as the released tokenizer takes it), at the clock's rate.
    Recordings too long, too short or without a transcript are left out by what the manifest says. Recordings that turn out to be
    unusable (see `load_recording`) are skipped and named in the log, and above `max_skip_rate` the run stops. Both are counted
    by reason in `skipped`.

    The order of training data is a function of (seed, pass, world size) alone, and a run that is resumed goes on with the batch
    that an unbroken one would train next. The trainer needs `use_distributed_sampler: false`.

    Args:
        clock: rates.
        train: corpora of the training mixture.
        val: validation sets by name; the name is part of the metric, `val/<name>/wer`; a set is a `CutSource` or its path.
        batch_seconds: seconds of audio in a batch of one rank, padding counted; a longer recording is a batch of its own.
        max_seconds: longer recordings are left out; 30 is what Whisper sees.
        min_seconds: shorter recordings are left out.
        join_seconds: join short recordings, a little silence between them, to up to this many seconds; each batch draws its own
            target below it. A model trained on short prompts alone does not learn to go on in long recordings.
        epochs: passes over all corpora, every recording once in each; null repeats every corpus for ever at its weight, and
            `trainer.max_steps` ends the run.
        num_buckets: buckets of similar duration.
        buffer_size: cuts that are held to fill buckets from and to shuffle among: more is less padding and a better shuffle.
        shuffle: shuffle training data.
        augmentation: of training audio.
        num_workers: processes that decode audio; 0 decodes in the training process.
        seed: of order and augmentation.
        max_skip_rate: share of unusable recordings above which the run stops.
        min_skip_count: so many recordings must be unusable before the share is looked at.
        duration_tolerance_sec: how much a file may differ from the duration in its manifest.
    """

    def __init__(
        self,
        clock: Clock,
        train: list[CutSource],
        val: dict[str, CutSource | str] | None = None,
        batch_seconds: float = 120.0,
        max_seconds: float = 30.0,
        min_seconds: float = 0.1,
        join_seconds: float | None = None,
        epochs: int | None = None,
        num_buckets: int = 20,
        buffer_size: int = 10_000,
        shuffle: bool = True,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - frozen, and the schema of the config
        num_workers: int = 0,
        seed: int = 0,
        max_skip_rate: float = 0.001,
        min_skip_count: int = 10,
        duration_tolerance_sec: float = 0.1,
    ) -> None:
        super().__init__()
        self.clock = clock
        self.train_sources = list(train)
        self.val_sources = {name: CutSource(s) if isinstance(s, str) else s for name, s in (val or {}).items()}
        self.batch_seconds = batch_seconds
        self.max_seconds, self.min_seconds, self.join_seconds = max_seconds, min_seconds, join_seconds
        self.epochs, self.shuffle = epochs, shuffle
        self.num_buckets, self.buffer_size = num_buckets, buffer_size
        self.augmentation, self.num_workers, self.seed = augmentation, num_workers, seed
        self.duration_tolerance_sec = duration_tolerance_sec
        self.max_skip_rate, self.min_skip_count = max_skip_rate, min_skip_count
        self.skips = Skips(max_skip_rate, min_skip_count)
        self.left_out: Counter[str] = Counter()
        self._saved_world_size: int | None = None
        self._check()

    @property
    def val_names(self) -> list[str]:
        """Names of the validation sets, in the order of `val_dataloader`."""
        return list(self.val_sources)

    @property
    def skipped(self) -> Counter[str]:
        """Training recordings not used, by reason: left out for what their manifest says, and found to be unusable."""
        return self.left_out + self.skips.reasons

    def setup(self, stage: str | None = None) -> None:
        """Every manifest must be there before anything is trained."""
        for source in [*self.train_sources, *self.val_sources.values()]:
            read_cuts(source.path)

    def train_dataloader(self) -> CountedLoader:
        epoch, batches = position(self.trainer) if self.trainer else (0, 0)
        sampler = ResumedSampler(self._train_batches, epoch, self._at_this_world_size(batches))
        return CountedLoader(self._loader(self._train_dataset(), sampler), self.skips, sampler)

    def val_dataloader(self) -> list[CountedLoader]:
        loaders = []
        for source in self.val_sources.values():
            cuts = self._found(UsableCuts(source, self.unfit))
            batches = self._batches(CutSet(cast(Any, cuts)), self._buckets(cuts), shuffle=False, epoch=0)
            loader = self._loader(self._val_dataset(), ResumedSampler(every_epoch(batches)))
            loaders.append(CountedLoader(loader, Skips(self.max_skip_rate, self.min_skip_count)))
        return loaders

    def _train_dataset(self) -> Dataset:
        """What makes batches of training cuts."""
        return AudioDataset(self.clock, self.duration_tolerance_sec, self.join_seconds, self.augmentation, self.seed)

    def _val_dataset(self) -> Dataset:
        """What makes batches of held-out cuts."""
        return AudioDataset(self.clock, self.duration_tolerance_sec)

    def state_dict(self) -> dict[str, Any]:
        """What the order of the data depends on, for `load_state_dict` to compare; the position is in Lightning's loops."""
        return self._order()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Say so where the data of a resumed run is not what it was: its position then means something else."""
        self._saved_world_size = state_dict.get("world_size")
        changed = [f"{k} {state_dict.get(k)} -> {v}" for k, v in self._order().items() if state_dict.get(k) != v]
        if changed:
            rank_zero_warn(
                "the order of the data is not that of the checkpoint, so some recordings of this pass will be seen twice and "
                f"others not at all: {'; '.join(changed)}"
            )

    def _check(self) -> None:
        if self.num_buckets < 1 or self.buffer_size < 1:
            raise ValueError(
                f"num_buckets and buffer_size must be at least 1, got {self.num_buckets}, {self.buffer_size}"
            )
        if not self.train_sources:
            raise ValueError("data.init_args.train lists no corpus; name at least one cut manifest")
        if not any(source.weight > 0 for source in self.train_sources):
            raise ValueError("every corpus in data.init_args.train has weight 0; give one a weight")
        if self.join_seconds is not None and self.join_seconds > self.max_seconds:
            raise ValueError(f"join_seconds ({self.join_seconds}) must not exceed max_seconds ({self.max_seconds})")
        if not 0 <= self.min_seconds < self.max_seconds or self.batch_seconds <= 0:
            raise ValueError(
                f"0 <= min_seconds < max_seconds and 0 < batch_seconds must hold, got {self.min_seconds}, {self.max_seconds} "
                f"and {self.batch_seconds}; edit `data.init_args` in the config"
            )
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, or null for ever, got {self.epochs}")

    def _order(self) -> dict[str, Any]:
        return {
            "world_size": self.trainer.world_size if self.trainer else 1,
            "train": [asdict(source) for source in self.train_sources],
            "speed": list(self.augmentation.speed),
            **{name: getattr(self, name) for name in ORDER_SETTINGS},
        }

    def _at_this_world_size(self, batches: int) -> int:
        """Batches per rank that are as much data as `batches` were when the checkpoint was saved."""
        world = self.trainer.world_size if self.trainer else 1
        return batches * (self._saved_world_size or world) // world

    def _train_batches(self, epoch: int) -> Iterator[CutSet]:
        """Batches of one Lightning epoch: `epochs` passes, or one that never ends."""
        weighted = [source for source in self.train_sources if source.weight > 0]
        first = [self._found(UsableCuts(source, self.unfit, self.seed, self._speed)) for source in weighted]
        buckets = self._buckets(self._mixed(first))
        # Every rank reads every manifest; what it leaves out is counted by one of them.
        left_out = None if self.trainer and self.trainer.global_rank else self.left_out
        for number in range(self.epochs or 1):
            number += epoch * (self.epochs or 1)
            cuts = [
                UsableCuts(source, self.unfit, self.seed, self._speed, number, self.epochs is None, left_out)
                for source in weighted
            ]
            yield from self._batches(self._mixed(cuts), buckets, self.shuffle, number)

    def _found(self, cuts: UsableCuts) -> UsableCuts:
        """The cuts, if there are any: a corpus that is empty would be passed over without a word."""
        if next(iter(cuts), None) is None:
            reasons = Counter(filter(None, map(self.unfit, read_cuts(cuts.source.path))))
            counted = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "it is empty"
            raise ValueError(
                f"no cut can be used of {cuts.source.path}: {counted}; used are {self.min_seconds:g} to {self.max_seconds:g} s"
            )
        return cuts

    def _mixed(self, sources: list[UsableCuts]) -> CutSet:
        sets = [CutSet(cast(Any, cuts)) for cuts in sources]
        if len(sets) == 1:
            return sets[0]
        weights = [cuts.source.weight for cuts in sources]
        return CutSet.mux(*sets, weights=weights, seed=self.seed + sources[0].number)

    def unfit(self, cut: Cut) -> str:
        """Why the manifest alone says that a cut is not to be used, or ""."""
        if cut.duration > self.max_seconds:
            return "too long"
        if cut.duration < self.min_seconds:
            return "too short"
        return "" if text_of(cut) else "no transcript"

    def _speed(self, name: str, seconds: float) -> float:
        return self.augmentation.choose_speed(name, seconds, self.max_seconds)

    def _buckets(self, cuts: Iterable[Cut]) -> tuple[list[float], int]:
        """Limits of the buckets in seconds, and how many cuts to hold: the same for every rank and pass."""
        seconds = [seconds_heard(cut) for cut in itertools.islice(cuts, CUTS_FOR_BUCKETS)]
        share = sum(seconds) / self.num_buckets
        limits, filled = [], 0.0
        for length in sorted(seconds):
            if filled > share:
                limits.append(length)
                filled = 0.0
            filled += length
        size = self.buffer_size
        if len(seconds) < CUTS_FOR_BUCKETS:
            # Corpora that repeat for ever are not held many times over, or a recording would come again long before another
            # comes first; but every bucket has room for two batches.
            room = 2 * self.batch_seconds * self.num_buckets * len(seconds) / sum(seconds)
            size = min(size, max(len(seconds), round(room)))
        return limits or [self.max_seconds + 1.0], size

    def _batches(
        self, cuts: CutSet, buckets: tuple[list[float], int], shuffle: bool, epoch: int
    ) -> DynamicBucketingSampler:
        sampler = DynamicBucketingSampler(
            cuts,
            constraint=HeardSeconds(max_duration=self.batch_seconds),
            duration_bins=buckets[0],
            buffer_size=buckets[1],
            shuffle=shuffle,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )
        sampler.set_epoch(epoch)
        return sampler

    def _loader(self, dataset: Dataset, sampler: Sampler) -> DataLoader:
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            worker_init_fn=heed_the_parent_alone,
        )
