"""Recordings with their speech tokens, for the stages that turn tokens into sound: whole, cut short, or in small pieces."""

import random
from collections.abc import Iterator
from typing import Any, cast

from lhotse import CutSet
from lhotse.cut import Cut, MonoCut, MultiCut
from torch.utils.data import Dataset

from datamodules.audio import AudioDataModule
from datamodules.audio_batches import UsableCuts
from datamodules.cuts import CutSource
from datamodules.pitch import PitchMethod, require_pitch
from datamodules.resynthesis_batches import ResynthesisDataset
from datamodules.token_folder import FIELD, TokenFolder
from speechlm.tokens.clock import Clock

EDGE_SEC = 0.01  # decoded on both sides of a piece, so that the resampling filter has its surroundings


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
        """Manifests, and whoever hears the pitch, must be there before anything is trained, and tokens be of one tokenizer."""
        super().setup(stage)
        if self.pitch is not None:
            require_pitch()
        if self.tokens:
            self._check_tokens()

    def _check_tokens(self) -> None:
        """Folders of tokens must have the stage's codes, all by the tokenizer of the first; other manifests do not say."""
        vocab = getattr(self.trainer.lightning_module, "vocab", None) if self.trainer else None
        tokenizer: str | None = None
        for source in [*self.train_sources, *self.val_sources.values()]:
            folder = TokenFolder.find(source.path)
            if folder is not None:
                folder.require(vocab, tokenizer, self.clock)
                tokenizer = folder.header.tokenizer_hash

    def _train_dataset(self) -> Dataset:
        """Pieces, cut-off or whole recordings."""
        return ResynthesisDataset(
            self.clock, self.tokens, self.pitch, self.segment_samples, self.duration_tolerance_sec
        )

    def _val_dataset(self) -> Dataset:
        """Whole recordings."""
        return ResynthesisDataset(self.clock, self.tokens, self.pitch, None, self.duration_tolerance_sec)

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


def _has_tokens(cut: Cut) -> bool:
    return isinstance(cut, MonoCut | MultiCut) and FIELD in (cut.custom or {})


def _truncated(cut: Cut, offset_sec: float, seconds: float) -> Cut:
    """A part of a cut, under the same name."""
    return cut.truncate(offset=offset_sec, duration=seconds, preserve_id=True)
