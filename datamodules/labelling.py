"""Recordings to pseudo-labels: decoded ahead, in batches of like length, shard by shard, and chosen by how sure the model was."""

import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import SupervisionSegment
from lhotse.cut import Cut, MixedCut
from lhotse.utils import fastcopy

from datamodules.background import in_background
from datamodules.cuts import write_cuts
from datamodules.label_folder import Counts, LabelFolder
from datamodules.labels import Heard, Recogniser, Trust, compression_ratio
from datamodules.quiet_splits import quiet_splits
from datamodules.recipes.part_writer import PartWriter
from datamodules.recipes.utterances import Utterance, write_utterances
from datamodules.recordings import BadRecording, load_recording, path_of
from datamodules.token_plan import cuts_by_shard
from datamodules.tokenizing import Watcher
from speechlm.tokens.clock import Clock

AUDIO_SUFFIXES = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".aiff", ".aif")
BATCHES_AHEAD = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listening:
    """How recordings are heard.

    Args:
        shard_size: recordings in a shard: what is lost when a process is killed, and the stretch that is sorted by length.
        batch_seconds: seconds of audio in a batch, padding counted; a Whisper pads each to 30 s.
        max_seconds: longer recordings are cut where they are quiet; 30 is what Whisper hears.
        min_seconds: shorter ones are skipped.
        duration_tolerance_sec: how much a file may differ from the duration in its manifest.
        decode_threads: threads that decode audio while the model computes.
        bf16: compute in bfloat16: faster on a GPU, and some transcripts differ.

    Raises:
        ValueError: a number is out of range.
    """

    shard_size: int = 1000
    batch_seconds: float = 480.0
    max_seconds: float = 30.0
    min_seconds: float = 0.1
    duration_tolerance_sec: float = 0.1
    decode_threads: int = 4
    bf16: bool = False

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch_seconds", "decode_threads"):
            if getattr(self, name) <= 0:
                raise ValueError(f"listening.{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.min_seconds < 1.0 <= self.max_seconds:
            raise ValueError(
                f"0 <= min_seconds < 1 <= max_seconds must hold, got {self.min_seconds} and {self.max_seconds}"
            )


@dataclass(frozen=True)
class _Stretch:
    """Audio to be heard."""

    position: int
    start: float
    audio: np.ndarray


@dataclass(frozen=True)
class _Batch:
    """Decoded recordings of one group."""

    recordings: int
    stretches: list[_Stretch]
    skipped: dict[int, tuple[str, str]]  # position -> reason, where and what


class Labeller:
    """Labels one rank's shards: all those whose number leaves `rank` when divided by `world_size`.

    Batches are a function of a shard alone, so neither other ranks nor a restart change what is in a batch.

    Args:
        folder: where.
        recogniser: hears.
        listening: how.
        trust: what is chosen.
        language: code of recordings that name none; "" lets the model find out, where it can.
        watcher: told how it goes.
        rank: of this process.
        world_size: processes.
    """

    def __init__(
        self,
        folder: LabelFolder,
        recogniser: Recogniser,
        listening: Listening,
        trust: Trust,
        language: str,
        watcher: Watcher,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.folder, self.recogniser, self.listening, self.trust = folder, recogniser, listening, trust
        self.language, self.watcher = language, watcher
        self.mine = range(rank, folder.plan.num_shards, world_size)
        self.clock = Clock(sample_rate_hz=recogniser.sample_rate_hz)

    def run(self) -> Counts:
        """Hear what has not been heard yet, and choose among all of it; the counts of this rank's shards."""
        total = Counts()
        with ThreadPoolExecutor(self.listening.decode_threads) as pool:
            for shard, cuts in cuts_by_shard(self.folder.plan, lambda shard: shard in self.mine):
                heard = self.folder.heard(shard)
                if heard is None:
                    heard = self.folder.write_heard(shard, self._hear(cuts, pool))
                else:
                    self.watcher.kept(len(cuts))
                total.add(self._choose(shard, cuts, heard))
        return total

    # -- hearing -------------------------------------------------------------------------------------------------------

    def _hear(self, cuts: list[Cut], pool: ThreadPoolExecutor) -> dict[str, Any]:
        heard: list[Heard] = []
        skipped: dict[int, tuple[str, str]] = {}
        with closing(in_background(self._decoded(cuts, pool), depth=BATCHES_AHEAD)) as batches:
            for batch in batches:
                for some in self._rows(batch.stretches):
                    heard += self._label(some, cuts)
                skipped |= batch.skipped
                self.watcher.made(batch.recordings, *self._seconds(batch.stretches))
        heard.sort(key=lambda one: (one.position, one.start))
        return {
            "heard": [list(asdict(one).values()) for one in heard],
            "skipped": [[position, *why] for position, why in sorted(skipped.items())],
        }

    def _decoded(self, cuts: list[Cut], pool: ThreadPoolExecutor) -> Iterator[_Batch]:
        for group in self._groups(cuts):
            found = list(pool.map(lambda position: self._load(cuts[position], position), group))
            stretches = [stretch for some in found if isinstance(some, list) for stretch in some]
            skipped = {position: some for position, some in zip(group, found, strict=True) if isinstance(some, tuple)}
            yield _Batch(len(group), stretches, skipped)

    def _groups(self, cuts: list[Cut]) -> Iterator[list[int]]:
        """Positions of cuts of like length, the longest first; each that must be cut up is a group of its own."""
        group: list[int] = []
        for position in sorted(range(len(cuts)), key=lambda p: (-cuts[p].duration, p)):
            if group:
                longest = cuts[group[0]].duration
                padded = (len(group) + 1) * self.recogniser.padded_seconds(longest)
                if longest > self.listening.max_seconds or padded > self.listening.batch_seconds:
                    yield group
                    group = []
            group.append(position)
        if group:
            yield group

    def _load(self, cut: Cut, position: int) -> "list[_Stretch] | tuple[str, str]":
        """The stretches of a cut, or the reason why it is skipped, where and what."""
        if isinstance(cut, MixedCut):
            return "mixed cut", "only a MonoCut or MultiCut can carry a label; save the mix as a recording first"
        if cut.duration < self.listening.min_seconds:
            return "too short", f"{cut.duration} s"
        try:
            audio = load_recording(cut, self.clock, self.listening.duration_tolerance_sec)
        except BadRecording as bad:
            log.warning("skipped %s (%s: %s: %s)", cut.id, bad.reason, path_of(cut), bad)
            return bad.reason, f"{path_of(cut)}: {bad}"
        rate = self.clock.sample_rate_hz
        splits = quiet_splits(audio, rate, self.listening.max_seconds)
        return [_Stretch(position, first / rate, audio[first:end]) for first, end in splits]

    def _rows(self, stretches: list[_Stretch]) -> Iterator[list[_Stretch]]:
        """Stretches in as many batches as the memory asks for; more than one only of a recording that was cut up."""
        if stretches:
            longest = max(len(stretch.audio) for stretch in stretches) / self.clock.sample_rate_hz
            rows = max(1, int(self.listening.batch_seconds // self.recogniser.padded_seconds(longest)))
            yield from (stretches[i : i + rows] for i in range(0, len(stretches), rows))

    def _label(self, stretches: list[_Stretch], cuts: list[Cut]) -> Iterator[Heard]:
        languages = [self._language(cuts[stretch.position]) for stretch in stretches]
        labels = self.recogniser.transcribe([stretch.audio for stretch in stretches], languages)
        for stretch, label in zip(stretches, labels, strict=True):
            silent = None if label.no_speech is None else round(label.no_speech, 4)
            seconds = len(stretch.audio) / self.clock.sample_rate_hz
            yield Heard(
                stretch.position, stretch.start, seconds, label.text, label.language, round(label.confidence, 4), silent
            )

    def _language(self, cut: Cut) -> str:
        return next((s.language for s in cut.supervisions if s.language), self.language)

    def _seconds(self, stretches: list[_Stretch]) -> tuple[float, float]:
        """Seconds without and with padding."""
        lens = [len(stretch.audio) / self.clock.sample_rate_hz for stretch in stretches]
        return sum(lens), len(lens) * self.recogniser.padded_seconds(max(lens)) if lens else 0.0

    # -- choosing ------------------------------------------------------------------------------------------------------

    def _choose(self, shard: int, cuts: list[Cut], content: dict[str, Any]) -> Counts:
        """Write the manifest of what can be trusted of a shard, and how much that is."""
        heard = [Heard(*row) for row in content["heard"]]
        reasons = [self.trust.reason_against(one) for one in heard]
        kept = [one for one, reason in zip(heard, reasons, strict=True) if not reason]
        pieces = Counter(one.position for one in heard)
        chosen = (self._cut(cuts[one.position], one, pieces[one.position] > 1) for one in kept)
        write_cuts(chosen, self.folder.cuts_path(shard))
        counts = Counts(
            cuts_in=len(cuts),
            heard=len(pieces),
            skipped=Counter(reason for _, reason, _ in content["skipped"]),
            stretches=len(heard),
            kept=len(kept),
            seconds=sum(one.seconds for one in kept),
            left_out=Counter(reason for reason in reasons if reason),
        )
        for account in counts.accounts:
            account.require(f"shard {shard}")
        self.folder.write_chosen(shard, asdict(self.trust), counts)
        return counts

    def _cut(self, cut: Cut, heard: Heard, piece: bool) -> Cut:
        """The cut, or a piece of it, with what was heard in place of whatever it said."""
        name, speakers = cut.id, {s.speaker for s in cut.supervisions}
        bare = fastcopy(cut, supervisions=[])
        if piece:
            name = f"{cut.id}-{round(1000 * heard.start):08d}"
            end = min(heard.start + heard.seconds, cut.duration)
            bare = bare.truncate(offset=heard.start, duration=round(end - heard.start, ndigits=8))
        said = SupervisionSegment(
            id=name,
            recording_id=cut.recording.id,
            start=0.0,
            duration=bare.duration,
            channel=cut.channel,
            text=heard.text,
            language=heard.language or None,
            speaker=speakers.pop() if len(speakers) == 1 else None,
            custom={
                "confidence": heard.confidence,
                "no_speech": heard.no_speech,
                "compression_ratio": round(compression_ratio(heard.text), 3),
                "labelled_by": f"{self.folder.plan.model} {self.folder.plan.model_hash}",
            },
        )
        return fastcopy(bare, id=name, supervisions=[said])


def manifest_of_audio(folder: Path, path: Path, jobs: int) -> None:
    """A manifest of every audio file under a folder, without transcripts, by its path inside; nothing where there is one.

    Raises:
        ValueError: there is none.
    """
    if path.exists():
        return
    files = (file for file in sorted(folder.rglob("*")) if file.suffix.lower() in AUDIO_SUFFIXES)
    found = [Utterance(file.relative_to(folder).with_suffix("").as_posix(), file, "", "") for file in files]
    if not found:
        raise ValueError(f"there is no audio ({', '.join(AUDIO_SUFFIXES)}) and no cut manifest in {folder}")
    with PartWriter(path, 0) as part:
        write_utterances(found, part, jobs, transcribed=False)
