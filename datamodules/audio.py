"""Cuts in, `AudioBatch`es out: bucketed by seconds, mixed by weights, the same order for the same seed, resumable anywhere."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler
from lhotse.dataset.sampling.base import TimeConstraint
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.augment import Augmentation
from datamodules.cuts import CutSource, read_cuts
from datamodules.recordings import BadRecording, Skips, load_recording, path_of
from datamodules.resume import position
from speechlm.batch import AudioBatch
from speechlm.tokens.clock import Clock

JOIN_GAP_SEC = (0.05, 0.4)  # silence between joined recordings
SPARES = 4  # recordings of the last batch that stand in for one of which nothing could be read
CUTS_FOR_BUCKETS = 10_000  # whose durations set the limits of the buckets
ORDER_SETTINGS = (
    "seed", "shuffle", "epochs", "batch_seconds", "max_seconds", "min_seconds", "num_buckets", "buffer_size",
)  # fmt: skip

Row = tuple[np.ndarray, str, str, str]  # waveform, transcript, cut id, language


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

    def train_dataloader(self) -> "CountedLoader":
        epoch, batches = position(self.trainer) if self.trainer else (0, 0)
        sampler = ResumedSampler(self._train_batches, epoch, self._at_this_world_size(batches))
        dataset = AudioDataset(
            self.clock,
            self.duration_tolerance_sec,
            self.join_seconds,
            self.augmentation,
            self.seed,
        )
        return CountedLoader(self._loader(dataset, sampler), self.skips, sampler)

    def val_dataloader(self) -> list["CountedLoader"]:
        loaders = []
        for source in self.val_sources.values():
            cuts = self._found(UsableCuts(source, self._unfit))
            batches = self._batches(CutSet(cast(Any, cuts)), self._buckets(cuts), shuffle=False, epoch=0)
            dataset = AudioDataset(self.clock, self.duration_tolerance_sec)
            sampler = ResumedSampler(_every_epoch(batches))
            loaders.append(
                CountedLoader(self._loader(dataset, sampler), Skips(self.max_skip_rate, self.min_skip_count))
            )
        return loaders

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
        first = [self._found(UsableCuts(source, self._unfit, self.seed, self._speed)) for source in weighted]
        buckets = self._buckets(self._mixed(first))
        for number in range(self.epochs or 1):
            number += epoch * (self.epochs or 1)
            cuts = [
                UsableCuts(source, self._unfit, self.seed, self._speed, number, self.epochs is None, self.left_out)
                for source in weighted
            ]
            yield from self._batches(self._mixed(cuts), buckets, self.shuffle, number)

    def _found(self, cuts: "UsableCuts") -> "UsableCuts":
        """The cuts, if there are any: a corpus that is empty would be passed over without a word."""
        if next(iter(cuts), None) is None:
            raise ValueError(
                f"no cut can be used of {cuts.source.path}: all are too long, too short or without transcript"
            )
        return cuts

    def _mixed(self, sources: list["UsableCuts"]) -> CutSet:
        sets = [CutSet(cast(Any, cuts)) for cuts in sources]
        if len(sets) == 1:
            return sets[0]
        weights = [cuts.source.weight for cuts in sources]
        return CutSet.mux(*sets, weights=weights, seed=self.seed + sources[0].number)

    def _unfit(self, cut: Cut) -> str:
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
        return DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=self.num_workers)


def text_of(cut: Cut) -> str:
    """The transcript of a cut: its supervisions' texts in order of time."""
    ordered = sorted(cut.supervisions, key=lambda supervision: supervision.start)
    return " ".join(s.text.strip() for s in ordered if s.text and s.text.strip())


def seconds_heard(cut: Cut) -> float:
    """Seconds of a cut at the speed chosen for it."""
    return cut.duration / getattr(cut, "speed", 1.0)


@dataclass
class HeardSeconds(TimeConstraint):
    """Lhotse's limit on a batch, padding counted, in seconds as they are heard: a change of speed must not overfill it."""

    def add(self, example: Cut) -> None:
        """Count a cut in."""
        super().add(SimpleNamespace(duration=seconds_heard(example)))

    def measure_length(self, example: Cut) -> float:
        """What chooses the bucket of a cut."""
        return seconds_heard(example)


def _every_epoch(batches: Iterable[CutSet]) -> Callable[[int], Iterable[CutSet]]:
    """The same batches, whatever the epoch."""
    return lambda epoch: batches


class UsableCuts:
    """Cuts of one corpus that are worth decoding; can be iterated any number of times.

    Args:
        source: the corpus.
        unfit: the reason why a cut is left out, or "".
        seed: of the order of a folder's manifests, and of the speed; None is by name, at the speed they have.
        speed: chooses the factor of a recording by a name and its seconds.
        number: the pass over the corpus, which changes that order and the augmentation.
        forever: begin the next pass where one ends.
        left_out: where cuts left out are counted by reason.
    """

    def __init__(
        self,
        source: CutSource,
        unfit: Callable[[Cut], str],
        seed: int | None = None,
        speed: Callable[[str, float], float] = lambda name, seconds: 1.0,
        number: int = 0,
        forever: bool = False,
        left_out: Counter[str] | None = None,
    ) -> None:
        self.source, self.unfit, self.seed, self.speed, self.number = source, unfit, seed, speed, number
        self.forever, self.left_out = forever, left_out

    def __iter__(self) -> Iterator[Cut]:
        for number in itertools.count(self.number):
            found = False
            for cut in self._one_pass(number):
                found = True
                yield cut
            if not (self.forever and found):
                break

    def _one_pass(self, number: int) -> Iterator[Cut]:
        shuffle_seed = None if self.seed is None else f"{self.seed} {number}"
        for cut in read_cuts(self.source.path, self.source.language, shuffle_seed):
            reason = self.unfit(cut)
            if not reason:
                cut.pass_number = number
                speed = self.speed(f"{shuffle_seed} {cut.id}", cut.duration)
                if speed != 1.0:
                    cut.speed = speed
                yield cut
            elif self.left_out is not None:
                self.left_out[reason] += 1


class AudioDataset(Dataset):
    """(cuts of a batch, spare cuts) -> `AudioBatch` and the number of recordings in it; runs in the loader's workers.

    Args:
        clock: rates.
        tolerance_sec: see `load_recording`.
        join_seconds: see `AudioDataModule`.
        augmentation: of the audio.
        seed: of joining and augmentation.
    """

    def __init__(
        self,
        clock: Clock,
        tolerance_sec: float = 0.1,
        join_seconds: float | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008
        seed: int = 0,
    ) -> None:
        self.clock, self.tolerance_sec = clock, tolerance_sec
        self.join_seconds, self.augmentation, self.seed = join_seconds, augmentation, seed

    def __getitem__(self, item: tuple[list[Cut], list[Cut]]) -> tuple[AudioBatch, int]:
        cuts, spares = item
        rows, skipped = self._rows(cuts)
        if not rows:
            # Ranks must train the same number of batches, so an empty one can not be passed over. Which recordings stand in
            # depends on the position alone, as all else does.
            rows, skipped_too = self._rows(spares)
            skipped += skipped_too
        if not rows:
            raise RuntimeError(f"not one recording of a batch, nor of the one before it, could be used: {skipped[:5]}")
        used = len(rows)
        if self.join_seconds is not None:
            rows = self._join(rows, self._rng(cuts[0], "join"))
        return self._collate(rows, skipped), used

    def _rows(self, cuts: list[Cut]) -> tuple[list[Row], list[tuple[str, str]]]:
        rows: list[Row] = []
        skipped: list[tuple[str, str]] = []
        for cut in cuts:
            try:
                audio = load_recording(cut, self.clock, self.tolerance_sec)
            except BadRecording as bad:
                skipped.append((cut.id, f"{bad.reason}: {path_of(cut)}: {bad}"))
                continue
            audio = self.augmentation(audio, getattr(cut, "speed", 1.0), self._rng(cut, "augment"), self.clock)
            rows.append((audio, text_of(cut), cut.id, cut.supervisions[0].language or ""))
        return rows, skipped

    def _rng(self, cut: Cut, purpose: str) -> np.random.Generator:
        name = f"{self.seed} {getattr(cut, 'pass_number', 0)} {purpose} {cut.id}"
        digest = hashlib.sha256(name.encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def _join(self, rows: list[Row], rng: np.random.Generator) -> list[Row]:
        """Neighbours of one language joined until they reach this batch's target; ids are joined by "+"."""
        rate, limit = self.clock.sample_rate_hz, self.clock.num_samples(self.join_seconds or 0.0)
        target = rng.uniform(0, limit)
        joined: list[Row] = []
        for audio, text, name, language in rows:
            gap = np.zeros(int(rng.uniform(*JOIN_GAP_SEC) * rate), np.float32)
            last = joined[-1] if joined else None
            room = last is not None and len(last[0]) < target and len(last[0]) + len(gap) + len(audio) <= limit
            if last is not None and room and last[3] == language:
                joined[-1] = (np.concatenate([last[0], gap, audio]), f"{last[1]} {text}", f"{last[2]}+{name}", language)
            else:
                joined.append((audio, text, name, language))
        return joined

    def _collate(self, rows: list[Row], skipped: list[tuple[str, str]]) -> AudioBatch:
        audio = [torch.from_numpy(row[0]) for row in rows]
        languages = [row[3] for row in rows]
        return AudioBatch(
            audio=torch.nn.utils.rnn.pad_sequence(audio, batch_first=True),
            audio_lens=torch.tensor([len(a) for a in audio]),
            texts=[row[1] for row in rows],
            cut_ids=[row[2] for row in rows],
            languages=languages if any(languages) else [],
            sample_rate_hz=self.clock.sample_rate_hz,
            skipped=skipped,
        )


class ResumedSampler(Sampler):
    """Batches of cuts from any position on; metadata is read to get there, audio is not.

    Args:
        batches: the batches of an epoch.
        epoch: the epoch to start in.
        done: batches of that epoch to pass over.
    """

    def __init__(self, batches: Callable[[int], Iterable[CutSet]], epoch: int = 0, done: int = 0) -> None:
        self.batches, self.first_epoch, self.done = batches, epoch, done
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[list[Cut], list[Cut]]]:
        done = self.done if self.epoch == self.first_epoch else 0
        spares: list[Cut] = []
        for index, cuts in enumerate(self.batches(self.epoch)):
            if index >= done:
                yield list(cuts), spares
            spares = list(cuts)[-SPARES:]


class CountedLoader:
    """A loader that takes note of the recordings its batches had to skip.

    Args:
        loader: gives `AudioBatch`es, each with the number of recordings in it.
        skips: where they are counted, in the training process.
        sampler: whom Lightning is to tell the epoch; a validation set keeps its order, and has none.
    """

    def __init__(self, loader: DataLoader, skips: Skips, sampler: ResumedSampler | None = None) -> None:
        self.loader, self.skips = loader, skips
        if sampler is not None:
            self.sampler = sampler  # an attribute that is None would be taken for a DataLoader's

    def __iter__(self) -> Iterator[AudioBatch]:
        for batch, used in self.loader:
            self.skips.add(used, batch.skipped)
            yield batch
