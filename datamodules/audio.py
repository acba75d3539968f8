"""Cuts in, `AudioBatch`es out: bucketed by seconds, mixed by weights, the same order for the same seed, resumable anywhere."""

import hashlib
import itertools
from collections.abc import Iterator

import lightning as L
import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.augment import Augmentation
from datamodules.cuts import CutSource, read_cuts
from datamodules.recordings import BadRecording, Skips, load_recording
from speechlm.batch import AudioBatch
from speechlm.tokens.clock import Clock

JOIN_GAP_SEC = (0.05, 0.4)  # silence between joined recordings


class AudioDataModule(L.LightningDataModule):
    """Recordings with transcripts for training, and named sets of them for validation.

    Each recording is channel 0 of its cut, at the clock's rate. Recordings too long, too short, without a transcript, or unusable
    (see `load_recording`) are skipped, counted by reason in `skips`, and above `max_skip_rate` the run stops.

    Args:
        clock: rates.
        train: corpora of the training mixture.
        val: validation sets by name; the name is part of the metric, `val/<name>/wer`.
        batch_seconds: seconds of audio in a batch of one rank, padding counted.
        max_seconds: longer recordings are skipped; 30 is what Whisper sees.
        min_seconds: shorter recordings are skipped.
        join_seconds: join short recordings, a little silence between them, to up to this many seconds; each batch draws its own
            target below it. A model trained on short prompts alone does not learn to go on in long recordings.
        epochs: passes over all corpora, every recording once in each; null repeats every corpus for ever at its weight, and
            `trainer.max_steps` ends the run.
        num_buckets: buckets of similar duration.
        buffer_size: cuts that are held to fill buckets from: more is less padding.
        shuffle: shuffle training data.
        augmentation: of training audio.
        num_workers: processes that decode audio; 0 decodes in the training process.
        seed: of order and augmentation.
        max_skip_rate: share of unusable recordings above which the run stops.
    """

    def __init__(
        self,
        clock: Clock,
        train: list[CutSource],
        val: dict[str, CutSource] | None = None,
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
    ) -> None:
        super().__init__()
        self.clock = clock
        self.train_sources = train
        self.val_sources = val or {}
        self.batch_seconds = batch_seconds
        self.max_seconds, self.min_seconds, self.join_seconds = max_seconds, min_seconds, join_seconds
        self.epochs, self.shuffle = epochs, shuffle
        self.num_buckets, self.buffer_size = num_buckets, buffer_size
        self.augmentation, self.num_workers, self.seed = augmentation, num_workers, seed
        self.skips = Skips(max_rate=max_skip_rate)
        if join_seconds is not None and join_seconds > max_seconds:
            raise ValueError(f"join_seconds ({join_seconds}) must not exceed max_seconds ({max_seconds})")
        if not train:
            raise ValueError("data.init_args.train lists no corpus; name at least one cut manifest")

    @property
    def val_names(self) -> list[str]:
        """Names of the validation sets, in the order of `val_dataloader`."""
        return list(self.val_sources)

    def setup(self, stage: str | None = None) -> None:
        """Every manifest must be there before anything is trained."""
        for source in [*self.train_sources, *self.val_sources.values()]:
            read_cuts(source.path)

    def train_dataloader(self) -> "CountedLoader":
        sets = [self._usable(source, count=True) for source in self.train_sources]
        if self.epochs is None:
            sets = [cuts.repeat() for cuts in sets]
        weights = [source.weight for source in self.train_sources]
        mixed = sets[0] if len(sets) == 1 else CutSet.mux(*sets, weights=weights, seed=self.seed)
        sampler = ResumedSampler(self._sampler(mixed, self.shuffle), self.epochs or 1, self._batches_done())
        dataset = AudioDataset(self.clock, self.join_seconds, self.augmentation, self.seed)
        return CountedLoader(self._loader(dataset, sampler), self.skips)

    def val_dataloader(self) -> list["CountedLoader"]:
        loaders = []
        for source in self.val_sources.values():
            sampler = ResumedSampler(self._sampler(self._usable(source), shuffle=False), epochs=1)
            loaders.append(CountedLoader(self._loader(AudioDataset(self.clock), sampler), Skips(self.skips.max_rate)))
        return loaders

    def _batches_done(self) -> int:
        """Batches already trained. The whole run is one epoch to Lightning, so its counter, which it restores before it asks for
        the loader, is the position. The loader state that Lightning itself would save is rank 0's, one batch ahead."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer else 0

    def _usable(self, source: CutSource, count: bool = False) -> CutSet:
        """Cuts of a source that are worth decoding; in training those left out are counted."""

        def usable(cut: Cut) -> bool:
            reason = self._unfit(cut)
            if reason and count:
                self.skips.reasons[reason] += 1
            return not reason

        def named(cut: Cut) -> Cut:
            for supervision in cut.supervisions:
                supervision.language = supervision.language or source.language
            return cut

        return read_cuts(source.path).filter(usable).map(named)

    def _unfit(self, cut: Cut) -> str:
        if cut.duration > self.max_seconds:
            return "too long"
        if cut.duration < self.min_seconds:
            return "too short"
        return "" if text_of(cut) else "no transcript"

    def _sampler(self, cuts: CutSet, shuffle: bool) -> DynamicBucketingSampler:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DynamicBucketingSampler(
            cuts,
            max_duration=self.batch_seconds,
            num_buckets=self.num_buckets,
            buffer_size=self.buffer_size,
            num_cuts_for_bins_estimate=min(self.buffer_size, 10_000),
            shuffle=shuffle,
            drop_last=False,
            seed=self.seed,
            rank=rank,
            world_size=world,
        )

    def _loader(self, dataset: Dataset, sampler: Sampler) -> DataLoader:
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=False,
            pin_memory=torch.cuda.is_available(),
        )


def text_of(cut: Cut) -> str:
    """The transcript of a cut: its supervisions' texts in order of time."""
    ordered = sorted(cut.supervisions, key=lambda supervision: supervision.start)
    return " ".join(s.text.strip() for s in ordered if s.text and s.text.strip())


class AudioDataset(Dataset):
    """Batches of cuts -> `AudioBatch`; runs in the loader's workers.

    Args:
        clock: rates.
        join_seconds: see `AudioDataModule`.
        augmentation: of the audio.
        seed: of joining and augmentation.
    """

    def __init__(
        self,
        clock: Clock,
        join_seconds: float | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008
        seed: int = 0,
    ) -> None:
        self.clock, self.join_seconds, self.augmentation, self.seed = clock, join_seconds, augmentation, seed

    def __getitem__(self, item: tuple[int, CutSet]) -> AudioBatch:
        position, cuts = item  # batches before this one
        rows: list[Row] = []
        skipped = []
        for cut in cuts:
            try:
                audio = load_recording(cut, self.clock)
            except BadRecording as bad:
                skipped.append((cut.id, bad.reason))
                continue
            audio = self.augmentation(audio, self._rng(position, cut.id))
            rows.append((audio, text_of(cut), cut.id, cut.supervisions[0].language or ""))
        if self.join_seconds is not None and rows:
            rows = self._join(rows, self._rng(position, "join"))
        return self._collate(rows, skipped)

    def _rng(self, position: int, name: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.seed} {position} {name}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def _join(self, rows: list["Row"], rng: np.random.Generator) -> list["Row"]:
        """Neighbours of one language joined until they reach this batch's target."""
        rate, limit = self.clock.sample_rate_hz, self.clock.num_samples(self.join_seconds or 0.0)
        target = rng.uniform(0, limit)
        joined: list[Row] = []
        for audio, text, name, language in rows:
            gap = np.zeros(int(rng.uniform(*JOIN_GAP_SEC) * rate), np.float32)
            last = joined[-1] if joined else None
            room = last is not None and len(last[0]) < target and len(last[0]) + len(gap) + len(audio) <= limit
            if last is not None and room and last[3] == language:
                joined[-1] = (np.concatenate([last[0], gap, audio]), f"{last[1]} {text}", last[2], language)
            else:
                joined.append((audio, text, name, language))
        return joined

    def _collate(self, rows: list["Row"], skipped: list[tuple[str, str]]) -> AudioBatch:
        if not rows:
            raise RuntimeError(f"not one recording of a batch could be used: {skipped[:5]}")
        audio = [torch.from_numpy(row[0]) for row in rows]
        return AudioBatch(
            audio=torch.nn.utils.rnn.pad_sequence(audio, batch_first=True),
            audio_lens=torch.tensor([len(a) for a in audio]),
            texts=[row[1] for row in rows],
            cut_ids=[row[2] for row in rows],
            languages=[row[3] for row in rows],
            sample_rate_hz=self.clock.sample_rate_hz,
            skipped=skipped,
        )


Row = tuple[np.ndarray, str, str, str]  # waveform, transcript, cut id, language


class ResumedSampler(Sampler):
    """Passes of a Lhotse sampler, one after the other, from any batch on; metadata is read to get there, audio is not.

    Args:
        sampler: gives CutSets.
        epochs: passes.
        done: batches to pass over.
    """

    def __init__(self, sampler: DynamicBucketingSampler, epochs: int, done: int = 0) -> None:
        self.sampler, self.epochs, self.done = sampler, epochs, done

    def __iter__(self) -> Iterator[tuple[int, CutSet]]:
        return itertools.islice(enumerate(self._passes()), self.done, None)

    def _passes(self) -> Iterator[CutSet]:
        for epoch in range(self.epochs):
            self.sampler.set_epoch(epoch)
            yield from self.sampler


class CountedLoader:
    """A loader that takes note of the recordings its batches had to skip.

    Args:
        loader: gives `AudioBatch`es.
        skips: where they are counted, in the training process.
    """

    def __init__(self, loader: DataLoader, skips: Skips) -> None:
        self.loader, self.skips = loader, skips

    def __iter__(self) -> Iterator[AudioBatch]:
        for batch in self.loader:
            self.skips.add(len(batch), batch.skipped)
            yield batch
