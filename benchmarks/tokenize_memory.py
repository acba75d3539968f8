"""Memory of bulk tokenization by the number of cuts.

    python benchmarks/tokenize_memory.py [--cuts 1000 20000]

For each number a process of its own tokenizes that many cuts of a few short recordings with the embedded Whisper's lower half and
a random codebook, in shards of 100, and reports its peak, and how much its resident memory grew from the second shard on.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import MonoCut, Recording
from transformers import WhisperModel

from datamodules.cuts import write_cuts
from datamodules.token_folder import start_folder
from datamodules.token_plan import count_manifests
from datamodules.tokenizing import BulkTokenizer, Making, header_of
from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.log_mel import LogMel
from speechlm.nn.whisper_encoder import WhisperVQEncoder
from speechlm.nn.whisper_tokens import WhisperTokens
from speechlm.tokens.clock import Clock

SECONDS = (0.2, 0.3, 0.4)
MAKING = Making(shard_size=100, batch_seconds=10.0, decode_threads=2)


class Memory:
    """Is told how the work goes, and notes the resident memory."""

    def __init__(self) -> None:
        self.cuts = 0
        self.mib: dict[int, float] = {}  # by cuts done

    def kept(self, cuts: int) -> None:
        """Nothing is there beforehand."""

    def made(self, cuts: int, seconds: float, padded_seconds: float) -> None:
        """Note."""
        self.cuts += cuts
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.mib[self.cuts] = pages * resource.getpagesize() / 2**20

    @property
    def growth_mib(self) -> float:
        """From the second shard on, the highest."""
        start = next(mib for cuts, mib in self.mib.items() if cuts >= 2 * MAKING.shard_size)
        return max(self.mib.values()) - start


def make_corpus(folder: Path, count: int) -> Path:
    """A manifest of `count` cuts of three recordings."""
    folder.mkdir(parents=True, exist_ok=True)
    recordings = []
    for seconds in SECONDS:
        path = folder / f"{seconds}.flac"
        soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(int(16_000 * seconds)), 16_000)
        recordings.append(Recording.from_file(path))
    cuts = (MonoCut(f"{i}", 0.0, r.duration, 0, recording=r) for i in range(count) for r in [recordings[i % 3]])
    write_cuts(cuts, folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


def tokenize(folder: Path, count: int) -> dict[str, float]:
    """Tokenize `count` cuts; MiB."""
    clock = Clock()
    whisper = WhisperModel.from_pretrained("assets/whisper-nano-en", dtype=torch.float32)
    encoder = WhisperVQEncoder(whisper.encoder, 4, None, lambda dim: EmaVQ(dim, 512, init="random"))
    tokenizer = WhisperTokens(LogMel(whisper.config.num_mel_bins), encoder, clock)
    manifests = count_manifests([str(make_corpus(folder, count))])
    memory = Memory()
    out = start_folder(folder / "tokens", header_of(manifests, tokenizer, MAKING))
    totals = BulkTokenizer(out, tokenizer, MAKING, torch.device("cpu"), memory).run()
    assert totals.cuts_out == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cuts": count, "peak_mib": round(peak, 1), "growth_mib": round(memory.growth_mib, 1)}


def main() -> None:
    """Measure and print, a line a number."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cuts", type=int, nargs="+", default=[1_000, 20_000])
    args = parser.parse_args()
    if len(args.cuts) > 1:
        for count in args.cuts:
            subprocess.run([sys.executable, __file__, "--cuts", str(count)], check=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(tokenize(Path(folder), args.cuts[0])), flush=True)


if __name__ == "__main__":
    main()
