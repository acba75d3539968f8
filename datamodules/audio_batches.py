"""Cuts worth decoding, in batches of like length, decoded: what the data modules are made of."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Generic, TypeVar

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset.sampling.base import TimeConstraint
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.augment import Augmentation
from datamodules.cuts import CutSource, read_cuts
from datamodules.recordings import BadRecording, Skips, load_recording, path_of
from speechlm.batch import AudioBatch
from speechlm.tokens.clock import Clock

JOIN_GAP_SEC = (0.05, 0.4)  # silence between joined recordings
SPARES = 4  # recordings of the last batch that stand in for one of which nothing could be read

Row = tuple[np.ndarray, str, str, str]  # waveform, transcript, cut id, language


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


def every_epoch(batches: Iterable[CutSet]) -> Callable[[int], Iterable[CutSet]]:
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


R = TypeVar("R")
B = TypeVar("B")


class DecodingDataset(Dataset, Generic[R, B]):
    """(cuts of a batch, spare cuts) -> a batch and the number of recordings in it; runs in the loader's workers.

    Recordings that can not be used are skipped and named in the batch. Ranks must train the same number of batches, so one that
    would be empty can not be passed over: spares stand in, chosen by the position alone, as all else is.
    """

    def __getitem__(self, item: tuple[list[Cut], list[Cut]]) -> tuple[B, int]:
        cuts, spares = item
        rows, skipped = self._rows(cuts)
        if not rows:
            rows, skipped_too = self._rows(spares)
            skipped += skipped_too
        if not rows:
            raise RuntimeError(f"not one recording of a batch, nor of the one before it, could be used: {skipped[:5]}")
        return self._batch(rows, skipped, cuts[0]), len(rows)

    def _rows(self, cuts: Iterable[Cut]) -> tuple[list[R], list[tuple[str, str]]]:
        rows: list[R] = []
        skipped: list[tuple[str, str]] = []
        for cut in cuts:
            try:
                rows.append(self._row(cut))
            except BadRecording as bad:
                skipped.append((cut.id, f"{bad.reason}: {path_of(cut)}: {bad}"))
        return rows, skipped

    def _row(self, cut: Cut) -> R:
        """One recording; raises `BadRecording`."""
        raise NotImplementedError

    def _batch(self, rows: list[R], skipped: list[tuple[str, str]], first: Cut) -> B:
        """Of recordings that are not skipped; `first` is the first cut that was asked for."""
        raise NotImplementedError


class AudioDataset(DecodingDataset[Row, AudioBatch]):
    """Recordings with their transcripts.

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

    def _row(self, cut: Cut) -> Row:
        audio = load_recording(cut, self.clock, self.tolerance_sec)
        audio = self.augmentation(audio, getattr(cut, "speed", 1.0), self._rng(cut, "augment"), self.clock)
        return audio, text_of(cut), cut.id, cut.supervisions[0].language or ""

    def _batch(self, rows: list[Row], skipped: list[tuple[str, str]], first: Cut) -> AudioBatch:
        if self.join_seconds is not None:
            rows = self._join(rows, self._rng(first, "join"))
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
