"""Reading packed rows against other loaders of tokens, in one run.

    python benchmarks/rows.py [--rows 6000] [--batch_rows 32] [--repeats 3] [--skip_resume]

The same rows of 8192 ids (uint32, a vocabulary of 168,737) are written once in every format, and read shuffled, in batches, by
one process without workers, from the page cache. All deliver (B, 8192) tensors of ids; ours as int64, the others as they are
stored.

- `ids`: our rows through `RowFolder`, every row's checksum compared, to int64.
- `batches`: `RowsDataModule`, the whole `RowBatch`: ids, loss mask and document ids, with about 6 and about 43 documents a row,
  in the order of a mixture, with `prefetch: 0`. What the other loaders deliver has neither documents nor loss.
- litdata's `StreamingDataset`, MosaicML's `StreamingDataset` and WebDataset (.npy members, a shuffle buffer), where installed.

Speeds are millions of ids per CPU second and per second, the median of the repeats with the range. First batch: from nothing to
the first batch, files open included. Resume: a stream of a trillion ids is stood up from links to one file, and a run that has
trained 99 % of it is resumed: from nothing to its next batch.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from datamodules.mixture import RowSource
from datamodules.rows import RowsDataModule
from speechlm.tokens.clock import Clock
from speechlm.tokens.keyed import permuted
from speechlm.tokens.rows import RowFolder, index_of, row_writer, write_index

ROW_LEN, VOCAB = 8192, 168_737
Batches = Callable[[], Iterator[torch.Tensor]]


def write_rows(folder: Path, rows: int, documents: int, first: int = 0) -> Path:
    """A folder of random rows of about so many documents each."""
    rng = np.random.default_rng(first)
    with row_writer(folder / "0.rows", ROW_LEN, "benchmark", VOCAB, {"source": folder.name}) as writer:
        for _ in range(rows):
            inner = np.unique(rng.integers(1, ROW_LEN, documents - 1))
            ends = np.append(inner, ROW_LEN)
            spans = np.stack([np.concatenate([[0], inner]) + 1, ends], axis=1)
            writer.write(rng.integers(0, VOCAB, ROW_LEN), ends, spans[spans[:, 0] < spans[:, 1]])
    write_index(folder, index_of([folder / "0.rows"]))
    return folder


def our_ids(folder: Path, batch_rows: int) -> Iterator[torch.Tensor]:
    """Ids alone, in a keyed order."""
    rows = RowFolder(folder)
    order = permuted(np.arange(len(rows)), len(rows), np.full(len(rows), 1, np.uint64))
    for start in range(0, len(order) - batch_rows + 1, batch_rows):
        batch = np.empty((batch_rows, ROW_LEN), np.int64)
        for i, row in enumerate(order[start : start + batch_rows].tolist()):
            batch[i] = rows.row(row).ids
        yield torch.from_numpy(batch)


def our_batches(folder: Path, batch_rows: int, total: float | None = None) -> Iterator[torch.Tensor]:
    """Ids of whole `RowBatch`es, one pass over the rows."""
    source = RowSource(str(folder), weight=1.0)
    data = RowsDataModule(Clock(), [source], batch_rows=batch_rows, total_tokens=total, prefetch=0)
    rows = len(data.stream.folders[0])
    for done, batch in enumerate(data.train_dataloader(), 1):
        yield batch.ids
        if done * batch_rows + batch_rows > rows:
            return


def litdata(folder: Path, rows: np.ndarray, batch_rows: int) -> Batches:
    """litdata, each row a sample."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    out = folder / "litdata"
    out.mkdir()
    writer = BinaryWriter(str(out), chunk_bytes="64MB")
    for number, row in enumerate(rows):
        writer[number] = {"ids": torch.from_numpy(row.view(np.int32))}
    writer.done()
    writer.merge()

    def batches() -> Iterator[torch.Tensor]:
        data = StreamingDataset(str(out), shuffle=True, seed=1)
        for batch in DataLoader(data, batch_size=batch_rows, drop_last=True):
            yield batch["ids"]

    return batches


def mosaicml(folder: Path, rows: np.ndarray, batch_rows: int) -> Batches:
    """MosaicML streaming, each row a sample of an ndarray."""
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    out = folder / "mds"
    with MDSWriter(out=str(out), columns={"ids": f"ndarray:uint32:{ROW_LEN}"}) as writer:
        for row in rows:
            writer.write({"ids": row})
    os.environ |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
    }

    def batches() -> Iterator[torch.Tensor]:
        clean_stale_shared_memory()
        data = StreamingDataset(local=str(out), shuffle=True, batch_size=batch_rows)
        for batch in DataLoader(data, batch_size=batch_rows, drop_last=True):
            yield batch["ids"]

    return batches


def webdataset(folder: Path, rows: np.ndarray, batch_rows: int) -> Batches:
    """WebDataset, each row an .npy member of a tar."""
    import webdataset as wds

    with wds.TarWriter(str(folder / "0.tar")) as writer:
        for number, row in enumerate(rows):
            writer.write({"__key__": f"{number:06d}", "npy": row})

    def batches() -> Iterator[torch.Tensor]:
        data = wds.WebDataset([str(folder / "0.tar")], shardshuffle=False).shuffle(1000).decode().to_tuple("npy")
        for (batch,) in data.batched(batch_rows, partial=False):
            yield torch.from_numpy(batch)

    return batches


def speed_of(batches: Batches, repeats: int) -> dict[str, Any]:
    """Millions of ids per CPU second and per second, and seconds to the first batch."""
    cpu, wall, first = [], [], []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        made = batches()
        count = next(made).numel()
        first.append(time.perf_counter() - began)
        began, began_cpu, ids = time.perf_counter(), time.process_time(), 0
        for batch in made:
            ids += batch.numel()
        assert ids > count
        cpu.append(ids / (time.process_time() - began_cpu) / 1e6)
        wall.append(ids / (time.perf_counter() - began) / 1e6)
    return {
        "million_ids_per_cpu_sec": _spread(cpu[1:]),
        "million_ids_per_sec": _spread(wall[1:]),
        "first_batch_sec": round(statistics.median(first), 4),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 1), "min": round(min(values), 1), "max": round(max(values), 1)}


def trillion(folder: Path, rows: int = 16_384) -> tuple[Path, int]:
    """A folder of a trillion ids and more: one file under many names."""
    one = write_rows(folder / "one", rows, 6) / "0.rows"
    links = -(-(10**12) // (rows * ROW_LEN))
    many = folder / "many"
    many.mkdir()
    for number in range(links):
        os.link(one, many / f"{number:05d}.rows")
    index = index_of([one])
    entries = [{**index["files"][0], "name": f"{number:05d}.rows"} for number in range(links)]
    write_index(many, {**index, "files": entries})
    return many, links


def resume(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds from nothing to the next batch of a run that has trained 99 % of a trillion ids."""
    many, links = trillion(folder)
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        data = RowsDataModule(Clock(), [RowSource(str(many), weight=1.0)], batch_rows=4, total_tokens=1e12)
        rows = data.stream.order.rows or 0
        data.load_state_dict({"rows": int(0.99 * rows), "batches": 0, "batch": 4, **data._order()})
        batch = next(iter(data.train_dataloader()))
        taken.append(time.perf_counter() - began)
        assert batch.ids.shape == (4, ROW_LEN)
    return {"sec": round(statistics.median(taken), 3), "max": round(max(taken), 3), "files": links, "rows": rows}


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every loader over the same rows."""
    few = write_rows(folder / "few", args.rows, 6)
    many = write_rows(folder / "many documents", args.rows, 43, 1)
    results = {
        "ids": speed_of(lambda: our_ids(few, args.batch_rows), args.repeats),
        "batches, 6 documents a row": speed_of(lambda: our_batches(few, args.batch_rows), args.repeats),
        "batches, 43 documents a row": speed_of(lambda: our_batches(many, args.batch_rows), args.repeats),
    }
    rows = np.stack([RowFolder(few).row(i).ids for i in range(args.rows)])
    others: dict[str, Callable[[Path, np.ndarray, int], Batches]] = {
        "litdata": litdata, "mosaicml streaming": mosaicml, "webdataset": webdataset,
    }  # fmt: skip
    for name, make in others.items():
        try:
            results[name] = speed_of(make(folder, rows, args.batch_rows), args.repeats)
        except ImportError as error:
            results[name] = {"skipped": f"not installed ({error.name})"}
    return results


def main() -> None:
    """Measure, print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--batch_rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip_resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="rows"))
    try:
        loaders = measure(args, folder)
        resumed = None if args.skip_resume else resume(folder / "resume", args.repeats)
    finally:
        shutil.rmtree(folder)
    speeds = {n: r["million_ids_per_cpu_sec"]["median"] for n, r in loaders.items() if "skipped" not in r}
    best = max(
        (speed for name, speed in speeds.items() if name in ("litdata", "mosaicml streaming", "webdataset")),
        default=None,
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "commit": commit,
        "torch": torch.__version__,
        "rows": args.rows,
        "batch_rows": args.batch_rows,
        "loaders": loaders,
        "ratio_of_ids_to_the_best_other": best and round(speeds["ids"] / best, 1),
        "ratio_of_batches_to_the_best_other": best and round(speeds["batches, 6 documents a row"] / best, 1),
        "resume_at_99_percent_of_a_trillion_ids": resumed or "skipped",
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
