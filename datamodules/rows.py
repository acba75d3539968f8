"""Packed rows in, `RowBatch`es out: memory-mapped, in this process, in an order that is a function of seed and step."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.mixture import Anneal, Lesson, RowSource, phases
from datamodules.resume import position
from datamodules.row_batches import RowLoader, Stream, batch_of, shortened
from speechlm.batch import RowBatch
from speechlm.tokens.clock import Clock
from speechlm.tokens.order import RowOrder
from speechlm.tokens.rows import RowFolder
from speechlm.tokens.vocab import Vocab


class RowsDataModule(L.LightningDataModule):
    """Packed rows for training, mixed by weight, and named sets of them for validation.

    The order is one global stream, a function of `seed` and the position in it. Micro-batch m of all ranks together is the next
    `world_size × batch_rows` rows, rank after rank, so every world size with the same rows per step trains on the same rows in
    the same steps; to resume is to compute a position. Nothing is buffered or replayed, and there are no worker processes.
    The trainer needs `use_distributed_sampler: false`.

    Args:
        clock: rates; rows of another token rate are refused.
        train: sources of the mixture.
        val: validation sets by name, each a folder of rows; the name is part of the metric, `val/<name>/loss`.
        batch_rows: rows in a micro-batch of one rank.
        step_rows: rows of an optimizer step, all ranks and accumulated micro-batches together; checked where given, so that
            another number of nodes does not quietly mean another batch size.
        total_tokens: ids (padding counted) after which training ends; null never ends, and `trainer.max_steps` does.
        anneal: another mixture at the end.
        curriculum: shorter sequences at the beginning, in the order of their `until`.
        val_rows: rows of each validation set that are used; null is all.
        seed: of the order.
        prefetch: micro-batches a side thread reads ahead; 0 reads in the training thread.
        verify: compare the checksums of every byte of every file before training; rows are checked when they are read anyway.
    """

    def __init__(
        self,
        clock: Clock,
        train: list[RowSource],
        val: dict[str, str] | None = None,
        batch_rows: int = 1,
        step_rows: int | None = None,
        total_tokens: float | None = None,
        anneal: Anneal | None = None,
        curriculum: list[Lesson] | None = None,
        val_rows: int | None = None,
        seed: int = 0,
        prefetch: int = 2,
        verify: bool = False,
    ) -> None:
        super().__init__()
        self.clock, self.sources, self.val = clock, list(train), dict(val or {})
        self.batch_rows, self.step_rows, self.total_tokens = batch_rows, step_rows, total_tokens
        self.anneal, self.curriculum, self.val_rows = anneal, list(curriculum or []), val_rows
        self.seed, self.prefetch, self.verify = seed, prefetch, verify
        self._stream: Stream | None = None
        #: Where the run was resumed: rows of the stream, micro-batches that the trainer counts, and rows in one of them.
        self._before = {"rows": 0, "batches": 0, "batch": self.batch_rows}
        self._check()

    @property
    def val_names(self) -> list[str]:
        """Names of the validation sets, in the order of `val_dataloader`."""
        return list(self.val)

    @property
    def stream(self) -> Stream:
        """The training rows in order."""
        if self._stream is None:
            self._stream = self._make_stream()
        return self._stream

    def setup(self, stage: str | None = None) -> None:
        """Everything that is to be read must be there, and of the run's vocabulary, before anything is trained."""
        vocab = getattr(self.trainer.lightning_module, "vocab", None) if self.trainer else None
        for folder in [*self.stream.folders, *(RowFolder(path, self.verify) for path in self.val.values())]:
            self._check_folder(folder, vocab)

    def train_dataloader(self) -> RowLoader:
        self._check_step_rows()
        if self.trainer:
            position(self.trainer)  # mends the counters of a resumed run, which `_batches_done` reads
            self._recount()
        return RowLoader(self._train_batches, self.prefetch)

    def val_dataloader(self) -> list[RowLoader]:
        return [RowLoader(partial(self._val_batches, name, path), 0) for name, path in self.val.items()]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what it is made of."""
        return {
            "rows": self._rows_done(),
            "batches": self._batches_done(),
            "batch": self._global_rows(),
            **self._order(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stood; say so where the stream is not what it was."""
        self._before = {name: int(state_dict[name]) for name in self._before}
        changed = [name for name, value in self._order().items() if state_dict.get(name) != value]
        if changed:
            rank_zero_warn(
                f"the order of the rows is not that of the checkpoint ({', '.join(changed)} changed): from here on rows may come "
                f"again, earlier or later than planned"
            )

    def _check(self) -> None:
        labels = [source.label for source in self.sources]
        if not labels:
            raise ValueError("data.init_args.train lists no source; name at least one folder of rows")
        if len(set(labels)) < len(labels) or len({source.path for source in self.sources}) < len(labels):
            raise ValueError(f"every source may be listed once, under a name of its own, got {labels}")
        if self.batch_rows < 1 or self.prefetch < 0:
            raise ValueError(f"batch_rows must be at least 1 and prefetch 0, got {self.batch_rows} and {self.prefetch}")
        needs_total = [f"epochs of {source.label}" for source in self.sources if source.epochs is not None]
        needs_total += ["anneal"] * (self.anneal is not None) + ["curriculum"] * bool(self.curriculum)
        if self.total_tokens is None and needs_total:
            raise ValueError(f"total_tokens must be given: {', '.join(needs_total)} can not be known without")
        untils = [lesson.until for lesson in self.curriculum]
        if untils != sorted(set(untils)) or any(not 0 < until <= 1 for until in untils):
            raise ValueError(f"the lessons of the curriculum must have ascending `until` in (0, 1], got {untils}")

    def _make_stream(self) -> Stream:
        folders = [RowFolder(source.path, self.verify) for source in self.sources]
        lengths = {source.label: folder.row_len for source, folder in zip(self.sources, folders, strict=True)}
        row_len = folders[0].row_len
        if set(lengths.values()) != {row_len}:
            raise ValueError(f"sources must have rows of one length, got {lengths}")
        for lesson in self.curriculum:
            if lesson.seq_len < 2 or row_len % lesson.seq_len:
                raise ValueError(f"a curriculum's seq_len must divide the rows' {row_len} ids, got {lesson.seq_len}")
        total = None if self.total_tokens is None else int(self.total_tokens // row_len)
        if total is not None and total < 2:
            raise ValueError(f"total_tokens {self.total_tokens} are less than two rows of {row_len}")
        sizes = [len(folder) for folder in folders]
        order = RowOrder(sizes, phases(self.sources, sizes, total, self.anneal), self.seed)
        languages = [s.language or f.index["language"] or "" for s, f in zip(self.sources, folders, strict=True)]
        return Stream(folders, list(lengths), languages, order)

    def _check_folder(self, folder: RowFolder, vocab: Vocab | None) -> None:
        if vocab is not None:
            vocab.require(folder.vocab_hash, str(folder.path))
        rate = folder.index["token_rate_hz"]
        if rate is not None and rate != self.clock.token_rate_hz:
            raise ValueError(
                f"{folder.path} has {rate} speech tokens per second, the clock of this run {self.clock.token_rate_hz}; "
                f"edit `clock` in the config or pack the right tokens"
            )

    def _check_step_rows(self) -> None:
        accumulated = self.trainer.accumulate_grad_batches if self.trainer else 1
        each = self._global_rows()
        if self.step_rows is None or each * accumulated == self.step_rows:
            return
        advice = f"set trainer.accumulate_grad_batches to {self.step_rows // each}"
        if self.step_rows % each:
            advice = f"choose ranks and batch_rows whose product divides {self.step_rows}"
        raise ValueError(
            f"{self._world()} ranks × batch_rows {self.batch_rows} × accumulate_grad_batches {accumulated} are "
            f"{each * accumulated} rows per step, step_rows says {self.step_rows}; {advice}"
        )

    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def _global_rows(self) -> int:
        """Rows of a micro-batch, all ranks together."""
        return self._world() * self.batch_rows

    def _recount(self) -> None:
        """Count what this epoch has trained in micro-batches of now, if a resumed run had others before.

        Lightning steps the optimizer at every multiple of `accumulate_grad_batches` of that count; with the old count the first
        step would be a part of one.
        """
        loop: Any = self.trainer.fit_loop.epoch_loop if self.trainer else None
        counts = loop.batch_progress.current
        more = counts.processed * self._before["batch"] // self._global_rows() - counts.processed
        if self._before["batches"] and more:
            for name in ("ready", "started", "processed", "completed"):
                setattr(counts, name, getattr(counts, name) + more)
        self._before["batch"] = self._global_rows()

    def _batches_done(self) -> int:
        loop: Any = self.trainer.fit_loop.epoch_loop if self.trainer else None
        return 0 if loop is None else loop.batch_progress.total.processed

    def _rows_done(self) -> int:
        """Rows of the stream already trained, at whatever world sizes."""
        batches = self._batches_done() - self._before["batches"]
        return self._before["rows"] + batches * self._global_rows()

    def _order(self) -> dict[str, Any]:
        """What the order depends on, in plain values."""
        return {
            "seed": self.seed,
            "total_tokens": self.total_tokens,
            "mixture": [asdict(source) for source in self.sources],
            "anneal": None if self.anneal is None else asdict(self.anneal),
            "files": [folder.fingerprint for folder in self.stream.folders],
        }

    def _train_batches(self) -> Iterator[RowBatch]:
        """This rank's batches from where training stands."""
        start, size = self._rows_done(), self._global_rows()
        end = self.stream.order.rows
        while end is None or start + size <= end:
            batch = self.stream.batch(start + self._rank() * self.batch_rows, self.batch_rows)
            batch = shortened(batch, self._seq_len(start))
            yield batch.looked_up(pin=True) if torch.cuda.is_available() else batch  # a CPU waits for nothing
            start += size

    def _seq_len(self, start: int) -> int:
        """Ids of a sequence for rows at a position."""
        share = start / (self.stream.order.rows or 1)
        return next((lesson.seq_len for lesson in self.curriculum if share < lesson.until), self.stream.row_len)

    def _val_batches(self, name: str, path: str) -> Iterator[RowBatch]:
        """This rank's part of a set, in order; the last batches are filled with empty rows, so that all ranks have as many."""
        folder = RowFolder(path)
        rows = len(folder) if self.val_rows is None else min(len(folder), self.val_rows)
        for first in range(0, rows, self._global_rows()):
            start = first + self._rank() * self.batch_rows
            places = [folder.locate(row) for row in range(start, min(start + self.batch_rows, rows))]
            batch = batch_of(places, self.batch_rows, folder.row_len)
            batch.sources, batch.languages = [name], [folder.index["language"] or ""]
            yield batch.looked_up(pin=True) if torch.cuda.is_available() else batch
