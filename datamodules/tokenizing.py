"""Cuts to speech tokens in bulk: sorted by length, decoded ahead on side threads, written shard by shard."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from datamodules.background import in_background
from datamodules.cut_shards import ManifestCount
from datamodules.recordings import BadRecording, load_recording, path_of
from datamodules.skip_limit import SkipLimit
from datamodules.token_folder import Commit, DamagedShard, Header, TokenFolder, Totals
from datamodules.token_plan import ShardCuts, shards
from datamodules.token_shards import write_shard
from speechlm.tokens.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Precision = Literal["float32", "bf16"]
BATCHES_AHEAD = 2  # decoded, or being decoded, beside the one that waits and the one that is computed


@dataclass(frozen=True)
class Making:
    """How tokens are made.

    Args:
        shard_size: cuts in a shard: what is lost when a process is killed, and the stretch that is sorted by length.
        batch_seconds: seconds of audio in a batch, padding counted; bounds the memory.
        precision: "float32": the tokens of a recording are the same in any batch. "bf16": for GPUs; a few tokens in a thousand
            are others than in float32, and some depend on the batch.
        duration_tolerance_sec: how much a file may differ from the duration in its manifest.
        decode_threads: threads that decode audio while the device computes.
        max_skip_rate: share of cuts that can not be used above which a process stops, once `min_skip_count` are.
        min_skip_count: see `max_skip_rate`.

    Raises:
        ValueError: a number is out of range.
    """

    shard_size: int = 1000
    batch_seconds: float = 600.0
    precision: Precision = "float32"
    duration_tolerance_sec: float = 0.1
    decode_threads: int = 4
    max_skip_rate: float = 0.01
    min_skip_count: int = 100

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch_seconds", "decode_threads"):
            if getattr(self, name) <= 0:
                raise ValueError(f"making.{name} must be positive, got {getattr(self, name)}")
        if self.precision not in ("float32", "bf16"):
            raise ValueError(f"making.precision must be float32 or bf16, got {self.precision!r}")

    def guarded(self) -> dict[str, object]:
        """Settings that tokens may depend on, besides the size of a shard."""
        kept: dict[str, object] = {
            "precision": self.precision,
            "duration_tolerance_sec": self.duration_tolerance_sec,
        }
        return kept if self.precision == "float32" else {**kept, "batch_seconds": self.batch_seconds}


class Watcher(Protocol):
    """Who is told how the work goes."""

    def kept(self, cuts: int) -> None:
        """A shard of so many cuts was there already."""
        ...

    def made(self, cuts: int, seconds: float, padded_seconds: float) -> None:
        """So many cuts became tokens, or were skipped."""
        ...


@dataclass
class _Shard:
    """A shard in the making."""

    cuts: ShardCuts
    tokens: dict[int, np.ndarray] = field(default_factory=dict)
    num_samples: int = 0


@dataclass
class _Batch:
    """Recordings of like length: positions in their shard, and their audio in one or several padded tensors of pieces."""

    shard: _Shard
    positions: list[int]
    last: bool  # of its shard
    waves: list[np.ndarray] = field(default_factory=list)
    pieces: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (P, N) audio, (P,) samples


def header_of(manifests: tuple[ManifestCount, ...], tokenizer: Tokenizer, making: Making) -> Header:
    """What a folder is made with."""
    return Header(
        manifests=manifests,
        shard_size=making.shard_size,
        clock=tokenizer.clock,
        tokenizer=tokenizer.settings,
        tokenizer_hash=tokenizer.hash,
        num_codes=tokenizer.num_codes,
        tokens_per_frame=tokenizer.tokens_per_frame,
        settings=making.guarded(),
    )


class BulkTokenizer:
    """Makes one rank's shards of a folder: all those whose number leaves `rank` when divided by `world_size`.

    Shards that are there and whole are kept, all others made, whoever made them. A shard is sorted by length and cut into batches
    by its manifest alone, so neither other ranks nor a restart change what is in a batch.

    Args:
        folder: where.
        tokenizer: on its device already.
        making: how.
        device: of the tokenizer.
        watcher: told how it goes.
        rank: of this process.
        world_size: processes.
    """

    def __init__(
        self,
        folder: TokenFolder,
        tokenizer: Tokenizer,
        making: Making,
        device: torch.device,
        watcher: Watcher,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.folder, self.tokenizer, self.making = folder, tokenizer, making
        self.device, self.watcher = device, watcher
        self.mine = range(rank, folder.header.num_shards, world_size)
        self.totals = Totals()

    def run(self) -> Totals:
        """Make what is not there yet; the totals of this rank's shards, kept ones included.

        Raises:
            RuntimeError: too many cuts could not be used.
            ValueError: a manifest is refused.
        """
        todo = [shard for shard in self.mine if not self._kept(shard)]
        with ThreadPoolExecutor(self.making.decode_threads) as decoders, ThreadPoolExecutor(1) as writer:
            batches = self._decoded(self._batches(shards(self.folder.header, set(todo).__contains__)), decoders)
            written: Future[Commit] | None = None
            with closing(in_background(batches, depth=BATCHES_AHEAD)) as ready:
                for batch in ready:
                    self._tokenize(batch)
                    if batch.last:
                        if written is not None:
                            self._count(written.result())
                        written = writer.submit(self._write, batch.shard)
            if written is not None:
                self._count(written.result())
        return self.totals

    def _kept(self, shard: int) -> bool:
        """Whether a shard is there and whole; counts it then."""
        try:
            commit = self.folder.verify(shard)
        except DamagedShard as error:
            if self.folder.commit_path(shard).exists():
                log.warning("made again: %s", error)
                self.folder.commit_path(shard).unlink()  # before anything of it changes
            return False
        self.totals.add(commit)
        self.watcher.kept(commit.cuts_in)
        return True

    def _count(self, commit: Commit) -> None:
        self.totals.add(commit)
        if commit.skipped:
            advice = "`making.max_skip_rate`; what is done is kept"
            limit = SkipLimit(self.making.max_skip_rate, self.making.min_skip_count, advice)
            limit.require(self.totals.skipped, self.totals.cuts_in, "cuts", str(commit.skipped[-1]))

    # -- on the side threads -------------------------------------------------------------------------------------------

    def _batches(self, planned: Iterable[ShardCuts]) -> Iterator[_Batch]:
        """Batches of every shard, the longest recordings first; a shard of which nothing can be used has an empty one."""
        for cuts in planned:
            shard = _Shard(cuts)
            groups = list(by_length(cuts, self.making.batch_seconds)) or [[]]
            for number, positions in enumerate(groups, 1):
                yield _Batch(shard, positions, last=number == len(groups))

    def _decoded(self, batches: Iterable[_Batch], pool: ThreadPoolExecutor) -> Iterator[_Batch]:
        """The same batches with their audio, several ahead in the hands of the decoders."""
        waiting: deque[tuple[_Batch, list[Future[np.ndarray]]]] = deque()
        for batch in batches:
            waiting.append((batch, [pool.submit(self._load, batch.shard.cuts.cuts[p]) for p in batch.positions]))
            if len(waiting) > BATCHES_AHEAD:
                yield self._collected(*waiting.popleft())
        while waiting:
            yield self._collected(*waiting.popleft())

    def _load(self, cut: Cut) -> np.ndarray:
        return load_recording(cut, self.tokenizer.clock, self.making.duration_tolerance_sec)

    def _collected(self, batch: _Batch, loading: list["Future[np.ndarray]"]) -> _Batch:
        """Bad recordings skipped by name, good ones cut into pieces and padded."""
        good = []
        for position, future in zip(batch.positions, loading, strict=True):
            try:
                batch.waves.append(future.result())
                good.append(position)
            except BadRecording as bad:
                cut = batch.shard.cuts.cuts[position]
                batch.shard.cuts.skipped[position] = (bad.reason, f"{path_of(cut)}: {bad}")
                log.warning("skipped %s (%s: %s: %s)", cut.id, bad.reason, path_of(cut), bad)
        batch.positions = good
        batch.pieces = list(self._pieces(batch.waves))
        return batch

    def _pieces(self, waves: list[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        """Recordings, each in pieces the tokenizer sees at once, padded together, in as many tensors as the memory asks for."""
        window = self.tokenizer.window_samples
        pieces = [torch.from_numpy(part) for wave in waves for part in np.split(wave, range(window, len(wave), window))]
        rows = max(len(waves), int(self.making.batch_seconds * self.tokenizer.clock.sample_rate_hz) // window)
        for first in range(0, len(pieces), rows):
            some = pieces[first : first + rows]
            audio, lens = pad_sequence(some, batch_first=True), torch.tensor([len(piece) for piece in some])
            yield (audio.pin_memory(), lens) if self.device.type == "cuda" else (audio, lens)

    # -- on the main thread --------------------------------------------------------------------------------------------

    def _tokenize(self, batch: _Batch) -> None:
        """Tokens of a batch to their places in the shard."""
        parts = [tokens for audio, lens in batch.pieces for tokens in self._rows(audio, lens)]
        taken = iter(parts)
        for position, wave in zip(batch.positions, batch.waves, strict=True):
            count = -(-len(wave) // self.tokenizer.window_samples)
            tokens = np.concatenate([next(taken) for _ in range(count)])
            self._check(batch.shard.cuts.cuts[position], tokens, len(wave))
            batch.shard.tokens[position] = tokens
            batch.shard.num_samples += len(wave)
        rate = self.tokenizer.clock.sample_rate_hz
        done = len(batch.positions) + (len(batch.shard.cuts.skipped) if batch.last else 0)
        padded = sum(audio.numel() for audio, _ in batch.pieces) / rate
        self.watcher.made(done, sum(map(len, batch.waves)) / rate, padded)
        batch.waves, batch.pieces = [], []

    def _rows(self, audio: Tensor, lens: Tensor) -> list[np.ndarray]:
        """(P, N) pieces, (P,) samples -> the tokens of each."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.making.precision == "bf16"):
            tokens, token_lens = self.tokenizer.tokenize(audio.to(self.device, non_blocking=True), lens.to(self.device))
        return [row[:n] for row, n in zip(tokens.cpu().numpy(), token_lens.tolist(), strict=True)]

    def _check(self, cut: Cut, tokens: np.ndarray, num_samples: int) -> None:
        """A tokenizer keeps its promises."""
        frame = self.tokenizer.tokens_per_frame
        needed = -(-self.tokenizer.clock.num_tokens(num_samples) // frame) * frame
        if len(tokens) != needed or tokens.min() < 0 or tokens.max() >= self.tokenizer.num_codes:
            raise RuntimeError(
                f"the tokenizer gave {len(tokens)} tokens from {tokens.min()} to {tokens.max()} for {cut.id}, {num_samples} "
                f"samples; expected {needed} in [0, {self.tokenizer.num_codes})"
            )

    def _write(self, shard: _Shard) -> Commit:
        seconds = self.tokenizer.clock.seconds_of_samples(shard.num_samples)
        plan = shard.cuts
        return write_shard(self.folder, plan.index, plan.cuts, shard.tokens, plan.skipped, seconds)


def by_length(shard: ShardCuts, batch_seconds: float) -> Iterator[list[int]]:
    """Positions of a shard's usable cuts in groups of like length, the longest first, padded to `batch_seconds` at most.

    A cut that is longer alone is a group of its own.
    """
    usable = [p for p in range(len(shard.cuts)) if p not in shard.skipped]
    ordered = sorted(usable, key=lambda p: (-shard.cuts[p].duration, p))
    group: list[int] = []
    for position in ordered:
        if group and (len(group) + 1) * shard.cuts[group[0]].duration > batch_seconds:
            yield group
            group = []
        group.append(position)
    if group:
        yield group
