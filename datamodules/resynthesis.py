"""Recordings with their speech tokens, for the stages that turn tokens into sound: whole, cut short, or in small pieces."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from lhotse import CutSet
from lhotse.array import TemporalArray
from lhotse.cut import Cut, MonoCut, MultiCut
from torch.utils.data import Dataset

from datamodules.audio import AudioDataModule
from datamodules.audio_batches import CountedLoader, ResumedSampler, UsableCuts, text_of
from datamodules.cuts import CutSource
from datamodules.pitch import PitchMethod, pitch_of, require_pitch
from datamodules.recordings import BadRecording, Skips, load_recording, path_of
from speechlm.batch import ResynthesisBatch
from speechlm.tokens.clock import Clock

TOKENS = "speech_tokens"  # the cut's field that `speechlm.tokenize` writes
EDGE_SEC = 0.01  # decoded on both sides of a piece, so that the resampling filter has its surroundings


@dataclass(frozen=True)
class Row:
    """One recording of a batch."""

    audio: np.ndarray  # (N,) float32
    tokens: np.ndarray  # (T,) int64
    pitch: np.ndarray  # (F,) float32, Hz
    cut: Cut


class ResynthesisDataModule(AudioDataModule):
    """Recordings at the decoder's rate with the speech tokens that `speechlm.tokenize` attached to their cuts.

    Token t belongs to samples [t, t + 1) * `clock.samples_per_token` of its recording, to the sample; a recording whose tokens
    are more than one too many or too few is skipped as `misaligned tokens`. Bad recordings, the order of the data and resuming
    are those of `AudioDataModule`; transcripts may be missing.

    Args:
        clock: rates of the decoder's side: 22,050 Hz, 12.5 tokens per second, hop 256.
        train: corpora of the training mixture.
        val: validation sets by name, always of whole recordings.
        segment_samples: train on random pieces of this many samples, one of each recording and pass, without tokens: for the
            vocoder (24,576 in the paper). Shorter recordings are filled with silence. Null trains on whole recordings.
        tokens: attach speech tokens; without, any corpus will do.
        pitch: how the true pitch is found, for the vocoder's pitch loss; null leaves it out. See `pitch_of`.
        truncate_share: share of recordings that are cut off behind a random number of blocks, so that the decoder learns to end
            anywhere: the paper's second stage, for streaming.
        truncate_tokens: tokens of such a block; 10 are 0.8 s.
        batch_seconds: seconds of audio in a batch of one rank, padding counted.
        max_seconds: longer recordings are left out.
        min_seconds: shorter recordings are left out.
        epochs: passes over all corpora, or null for ever, see `AudioDataModule`.
        num_buckets: buckets of similar duration.
        buffer_size: cuts that are held to fill buckets from and to shuffle among.
        shuffle: shuffle training data.
        num_workers: processes that decode audio.
        seed: of the order, the pieces and the lengths cut off.
        max_skip_rate: share of unusable recordings above which the run stops.
        min_skip_count: so many recordings must be unusable before the share is looked at.
        duration_tolerance_sec: how much a file may differ from the duration in its manifest.
    """

    def __init__(
        self,
        clock: Clock,
        train: list[CutSource],
        val: dict[str, CutSource | str] | None = None,
        segment_samples: int | None = None,
        tokens: bool = True,
        pitch: PitchMethod | None = None,
        truncate_share: float = 0.0,
        truncate_tokens: int = 10,
        batch_seconds: float = 120.0,
        max_seconds: float = 30.0,
        min_seconds: float = 0.5,
        epochs: int | None = None,
        num_buckets: int = 20,
        buffer_size: int = 10_000,
        shuffle: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        max_skip_rate: float = 0.001,
        min_skip_count: int = 10,
        duration_tolerance_sec: float = 0.1,
    ) -> None:
        self.segment_samples, self.pitch = segment_samples, pitch
        self.tokens = tokens and segment_samples is None
        self.truncate_share, self.truncate_tokens = truncate_share, truncate_tokens
        super().__init__(
            clock,
            train,
            val,
            batch_seconds=batch_seconds,
            max_seconds=max_seconds,
            min_seconds=min_seconds,
            epochs=epochs,
            num_buckets=num_buckets if segment_samples is None else 1,
            buffer_size=buffer_size,
            shuffle=shuffle,
            num_workers=num_workers,
            seed=seed,
            max_skip_rate=max_skip_rate,
            min_skip_count=min_skip_count,
            duration_tolerance_sec=duration_tolerance_sec,
        )

    def setup(self, stage: str | None = None) -> None:
        """Manifests, and whoever hears the pitch, must be there before anything is trained."""
        super().setup(stage)
        if self.pitch is not None:
            require_pitch()

    def train_dataloader(self) -> CountedLoader:
        """Pieces, cut-off or whole recordings, from where the run stands."""
        loader = super().train_dataloader()
        dataset = ResynthesisDataset(
            self.clock, self.tokens, self.pitch, self.segment_samples, self.duration_tolerance_sec
        )
        return CountedLoader(self._loader(dataset, loader.sampler), self.skips, loader.sampler)

    def val_dataloader(self) -> list[CountedLoader]:
        """Whole recordings of every set."""
        dataset = ResynthesisDataset(self.clock, self.tokens, self.pitch, None, self.duration_tolerance_sec)
        samplers = [cast(ResumedSampler, loader.loader.sampler) for loader in super().val_dataloader()]
        return [
            CountedLoader(self._loader(dataset, sampler), Skips(self.max_skip_rate, self.min_skip_count))
            for sampler in samplers
        ]

    def _check(self) -> None:
        super()._check()
        if self.segment_samples is not None and (
            self.segment_samples <= 0 or self.segment_samples % self.clock.hop_samples
        ):
            raise ValueError(
                f"segment_samples must be a whole number of mel frames of {self.clock.hop_samples} samples, got "
                f"{self.segment_samples}; edit `data.init_args` in the config"
            )
        if not 0.0 <= self.truncate_share <= 1.0 or self.truncate_tokens < 1:
            raise ValueError(
                f"truncate_share lies in [0, 1] and truncate_tokens is at least 1, got {self.truncate_share} and "
                f"{self.truncate_tokens}; edit `data.init_args` in the config"
            )
        if self.segment_samples is not None and self.truncate_share > 0:
            raise ValueError("segment_samples and truncate_share are two ways to shorten a recording; choose one")

    def _order(self) -> dict[str, Any]:
        settings = ("segment_samples", "tokens", "truncate_share", "truncate_tokens")
        return {**super()._order(), **{name: getattr(self, name) for name in settings}}

    def unfit(self, cut: Cut) -> str:
        """Why the manifest alone says that a cut is not to be used, or ""."""
        if cut.duration > self.max_seconds:
            return "too long"
        if cut.duration < self.min_seconds:
            return "too short"
        return "" if not self.tokens or _has_tokens(cut) else "no speech tokens"

    def _mixed(self, sources: list[UsableCuts]) -> CutSet:
        return super()._mixed([cast(UsableCuts, ShortenedCuts(cuts, self._shortened)) for cuts in sources])

    def _shortened(self, cut: Cut) -> Cut:
        """What is trained of a recording in this pass; the same for the same seed, pass and name."""
        draw = random.Random(f"{self.seed} {getattr(cut, 'pass_number', 0)} shorten {cut.id}")
        if self.segment_samples is not None:
            seconds = self.clock.seconds_of_samples(self.segment_samples) + 2 * EDGE_SEC
            room = cut.duration - seconds
            return cut if room <= 0 else _truncated(cut, draw.uniform(0.0, room), seconds)
        if draw.random() >= self.truncate_share:
            return cut
        block_sec = self.clock.seconds_of_tokens(self.truncate_tokens)
        seconds = block_sec * draw.randint(1, max(1, int(cut.duration / block_sec)))
        return cut if seconds >= cut.duration else _truncated(cut, 0.0, seconds)


class ShortenedCuts:
    """Cuts of a corpus, each shortened as it is read; what else is asked of the corpus is answered by it.

    Args:
        cuts: of the corpus.
        shorten: what is left of a cut.
    """

    def __init__(self, cuts: UsableCuts, shorten: Any) -> None:
        self.cuts, self.shorten = cuts, shorten
        self.source, self.number = cuts.source, cuts.number

    def __iter__(self) -> Iterator[Cut]:
        return map(self.shorten, self.cuts)


class ResynthesisDataset(Dataset):
    """(cuts of a batch, spare cuts) -> `ResynthesisBatch` and the number of recordings in it; runs in the loader's workers.

    Args:
        clock: rates.
        tokens: read speech tokens; a recording without good ones is skipped.
        pitch: how to find the pitch, or None.
        segment_samples: make every recording this long, from the middle of what was decoded.
        tolerance_sec: see `load_recording`.
    """

    def __init__(
        self,
        clock: Clock,
        tokens: bool = True,
        pitch: PitchMethod | None = None,
        segment_samples: int | None = None,
        tolerance_sec: float = 0.1,
    ) -> None:
        self.clock, self.tokens, self.pitch = clock, tokens, pitch
        self.segment_samples, self.tolerance_sec = segment_samples, tolerance_sec

    def __getitem__(self, item: tuple[list[Cut], list[Cut]]) -> tuple[ResynthesisBatch, int]:
        cuts, spares = item
        rows, skipped = self._rows(cuts)
        if not rows:  # ranks must train the same number of batches
            rows, skipped_too = self._rows(spares)
            skipped += skipped_too
        if not rows:
            raise RuntimeError(f"not one recording of a batch, nor of the one before it, could be used: {skipped[:5]}")
        return self._collate(rows, skipped), len(rows)

    def _rows(self, cuts: Iterable[Cut]) -> tuple[list[Row], list[tuple[str, str]]]:
        rows: list[Row] = []
        skipped: list[tuple[str, str]] = []
        for cut in cuts:
            try:
                rows.append(self._row(cut))
            except BadRecording as bad:
                skipped.append((cut.id, f"{bad.reason}: {path_of(cut)}: {bad}"))
        return rows, skipped

    def _row(self, cut: Cut) -> Row:
        audio = load_recording(cut, self.clock, self.tolerance_sec)
        if self.segment_samples is not None:
            audio = _middle(audio, self.segment_samples)
        tokens = np.zeros(0, np.int64)
        if self.tokens:
            audio, tokens = aligned(audio, load_tokens(cut, self.clock), self.clock)
        pitch = pitch_of(audio, self.clock, self.pitch) if self.pitch else np.zeros(0, np.float32)
        return Row(audio, tokens, pitch, cut)

    def _collate(self, rows: list[Row], skipped: list[tuple[str, str]]) -> ResynthesisBatch:
        supervisions = [next(iter(row.cut.supervisions), None) for row in rows]
        return ResynthesisBatch(
            speech_tokens=_padded([row.tokens for row in rows], -1),
            speech_token_lens=torch.tensor([len(row.tokens) for row in rows]),
            audio=_padded([row.audio for row in rows], 0.0),
            audio_lens=torch.tensor([len(row.audio) for row in rows]),
            sample_rate_hz=self.clock.sample_rate_hz,
            speakers=[(s.speaker or "") if s else "" for s in supervisions],
            texts=[text_of(row.cut) for row in rows],
            cut_ids=[row.cut.id for row in rows],
            languages=[(s.language or "") if s else "" for s in supervisions],
            skipped=skipped,
            f0=_padded([row.pitch for row in rows], 0.0) if self.pitch else None,
        )


def load_tokens(cut: Cut, clock: Clock) -> np.ndarray:
    """(T,) int64 speech tokens from the cut's first sample on; those behind its end are not yet taken off.

    Raises:
        BadRecording: there are none, at another rate, unreadable, negative, or the cut begins inside of one.
    """
    field = cut.custom.get(TOKENS) if isinstance(cut, MonoCut | MultiCut) and cut.custom else None
    if not isinstance(field, TemporalArray):
        raise BadRecording("no speech tokens", f"the cut has no field {TOKENS!r} of tokens over time")
    if abs(field.frame_shift * clock.token_rate_hz - 1.0) > 1e-3:
        rate = f"{1.0 / field.frame_shift:.4g} tokens per second, the clock {clock.token_rate_hz:g}"
        raise BadRecording("other token rate", f"its tokens are {rate}")
    if field.end > cut.recording.duration + 1.01 / clock.token_rate_hz:
        ends = f"its tokens end at {field.end:.3f} s, the recording at {cut.recording.duration:.3f} s"
        raise BadRecording("misaligned tokens", ends)
    first = (cut.start - field.start) * clock.token_rate_hz
    if first < -0.01 or abs(first - round(first)) > 0.01:
        raise BadRecording("misaligned tokens", f"the cut begins {first:.3f} tokens behind the first one")
    try:
        tokens = np.asarray(field.load())
    except Exception as error:  # storages raise whatever they like
        raise BadRecording("unreadable tokens", f"{type(error).__name__}: {error}") from error
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer) or (tokens < 0).any():
        raise BadRecording("unreadable tokens", f"expected ids in one row, got {tokens.dtype} {tokens.shape}")
    return tokens[round(first) :].astype(np.int64)


def aligned(audio: np.ndarray, tokens: np.ndarray, clock: Clock) -> tuple[np.ndarray, np.ndarray]:
    """(N,) samples and (T,) tokens that begin together -> as many tokens as the samples fill, the last maybe in part.

    More tokens than that belong to what was cut off the recording. One too few happens where the tokenizer's sample rate rounds
    the recording down to whole tokens: the samples beyond go.

    Raises:
        BadRecording: more than one token is missing.
    """
    needed = clock.num_tokens(len(audio))
    if len(tokens) < needed - 1 or len(tokens) == 0:
        raise BadRecording("misaligned tokens", f"{len(tokens)} tokens for {len(audio)} samples, which fill {needed}")
    tokens = tokens[:needed]
    return audio[: clock.samples_of_tokens(len(tokens))], tokens


def _has_tokens(cut: Cut) -> bool:
    return isinstance(cut, MonoCut | MultiCut) and TOKENS in (cut.custom or {})


def _truncated(cut: Cut, offset_sec: float, seconds: float) -> Cut:
    """A part of a cut, under the same name."""
    return cut.truncate(offset=offset_sec, duration=seconds, preserve_id=True)


def _middle(audio: np.ndarray, num_samples: int) -> np.ndarray:
    """(N,) -> (num_samples,): the middle, or all of it and silence behind."""
    start = max(0, (len(audio) - num_samples) // 2)
    piece = audio[start : start + num_samples]
    return np.pad(piece, (0, num_samples - len(piece)))


def _padded(rows: list[np.ndarray], value: float) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], True, value)
