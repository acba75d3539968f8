"""Packing speed and waste against the usual ways, in one run.

    python benchmarks/pack.py [--documents 1000000] [--repeats 3]

Lengths are drawn once, with a fixed seed, from log-normal distributions: web text (mean 1485 ids, sigma 1.1), utterances
(mean 191, sigma 0.6) and both together. Ours is `speechlm.tokens.packing`: lengths in, a row and an offset for every document
out. Beside it: best-fit-decreasing with one document at a time (rooms in a sorted list, bisect, nothing assigned), which gives
rows just as full; OLMo-core's `InstancePacker`, where olmo_core is installed; next-fit; one document a row; and GPT-style
concatenation, which wastes nothing and cuts documents. Last, `RowFiller` writes real rows to a file, window by window, checksums
and all. Single core; speeds are millions of documents per CPU second, the median of the repeats with the range; the
slower packers run once, on the same documents.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from bisect import bisect_left, insort
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from speechlm.tokens.filling import RowFiller
from speechlm.tokens.packing import cut, pack
from speechlm.tokens.rows import row_writer
from speechlm.tokens.templates import Written
from speechlm.tokens.vocab import Vocab

ROW_LEN = 8192
MIXES = {"text": (1485.0, 1.1), "utterances": (191.0, 0.6)}


def lengths_of(mix: str, count: int) -> np.ndarray:
    """(count,) int64 lengths, the same in every run."""
    rng = np.random.default_rng(0)
    if mix == "both":
        return rng.permutation(np.concatenate([lengths_of(name, count // 2) for name in MIXES]))
    mean, sigma = MIXES[mix]
    return np.maximum(1, rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)).astype(np.int64)


def ours(lengths: np.ndarray) -> int:
    """Rows of `pack`, long documents cut."""
    return pack(cut(lengths, ROW_LEN).length, ROW_LEN).num_rows


def one_at_a_time(lengths: np.ndarray) -> int:
    """Rows of best-fit-decreasing as it is usually written."""
    rooms: list[int] = []
    for length in sorted(cut(lengths, ROW_LEN).length.tolist(), reverse=True):
        place = bisect_left(rooms, length)
        room = rooms.pop(place) if place < len(rooms) else ROW_LEN
        insort(rooms, room - length)
    return len(rooms)


def olmo_core(lengths: np.ndarray) -> int | None:
    """Rows of OLMo-core's packer; None where it is not installed."""
    try:
        from olmo_core.data.utils import InstancePacker
    except ImportError:
        return None
    ends = np.cumsum(cut(lengths, ROW_LEN).length)
    documents = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
    return len(InstancePacker(ROW_LEN).pack_documents(documents)[0])


def next_fit(lengths: np.ndarray) -> int:
    """Rows where a document that does not fit opens the next."""
    rows, room = 0, 0
    for length in cut(lengths, ROW_LEN).length.tolist():
        if length > room:
            rows, room = rows + 1, ROW_LEN
        room -= length
    return rows


def cut_by_concatenation(lengths: np.ndarray) -> float:
    """Share of documents that a row's end falls into, when all are written one after another and chopped."""
    ends = np.cumsum(lengths)
    return float(((ends - 1) // ROW_LEN != (ends - lengths) // ROW_LEN).mean())


def padding(lengths: np.ndarray, rows: int) -> float:
    """Percent of the positions."""
    return round(100 * (1 - lengths.sum() / (rows * ROW_LEN)), 4)


def timed(work: Callable[[], Any], count: int, repeats: int) -> tuple[Any, dict[str, float]]:
    """The result, and documents per CPU second: median, least, most, in millions."""
    speeds = []
    for _ in range(repeats):
        began = time.process_time()
        result = work()
        speeds.append(count / (time.process_time() - began) / 1e6)
    return result, {
        "median": round(statistics.median(speeds), 3),
        "min": round(min(speeds), 3),
        "max": round(max(speeds), 3),
    }


def filled(lengths: np.ndarray, folder: Path) -> int:
    """Write rows of documents of these lengths."""
    vocab = Vocab(num_text=151_552, num_speech=16_384)
    ids = np.arange(lengths.max(), dtype=np.int64)
    with row_writer(folder / "a.rows", ROW_LEN, vocab.hash, len(vocab), {}) as writer:
        filler = RowFiller(writer, vocab, 2**25)
        for length in lengths.tolist():
            filler.add(Written(ids[:length], 0))
        counts = filler.finish()
    assert counts.ids_out == lengths.sum()
    return len(writer.sums)


def measure(mix: str, documents: int, repeats: int) -> dict[str, Any]:
    """Everything about one mix; the slow baselines once, on the same documents."""
    lengths = lengths_of(mix, documents)
    rows, speed = timed(lambda: ours(lengths), documents, repeats)
    usual = baseline(one_at_a_time, lengths, speed)
    assert rows == usual.pop("rows")
    olmo: Any = "not installed" if olmo_core(lengths[:1]) is None else baseline(olmo_core, lengths, speed)
    some = lengths[: min(documents, 100_000)]
    with tempfile.TemporaryDirectory() as folder:
        written, fill_speed = timed(lambda: filled(some, Path(folder)), len(some), repeats)
    return {
        "documents": documents,
        "mean_length": round(float(lengths.mean()), 1),
        "longer_than_a_row_percent": round(100 * float((lengths > ROW_LEN).mean()), 3),
        "ours": {"million_documents_per_sec": speed, "padding_percent": padding(lengths, rows)},
        "one_at_a_time": usual,
        "olmo_core": olmo,
        "next_fit_padding_percent": padding(lengths, next_fit(lengths)),
        "one_document_a_row_padding_percent": padding(lengths, len(cut(lengths, ROW_LEN).length)),
        "concatenation_cuts_percent": round(100 * cut_by_concatenation(lengths), 2),
        "rows_to_disk": {
            "documents": len(some),
            "million_documents_per_sec": fill_speed,
            "million_ids_per_sec": round(fill_speed["median"] * float(some.mean()), 1),
            "padding_percent": padding(some, written),
        },
    }


def baseline(
    packer: Callable[[np.ndarray], int | None], lengths: np.ndarray, ours_speed: dict[str, float]
) -> dict[str, Any]:
    """Speed and waste of another packer, once, and how many times faster ours is."""
    rows, speed = timed(lambda: packer(lengths), len(lengths), 1)
    ratio = round(ours_speed["median"] / speed["median"], 1)
    wasted = padding(lengths, rows)
    return {"rows": rows, "million_documents_per_sec": speed["median"], "padding_percent": wasted, "ratio": ratio}


def main() -> None:
    """Measure, print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    mixes = {mix: measure(mix, args.documents, args.repeats) for mix in (*MIXES, "both")}
    print(json.dumps({"commit": commit, "numpy": np.__version__, "row_len": ROW_LEN, "mixes": mixes}, indent=1))


if __name__ == "__main__":
    main()
