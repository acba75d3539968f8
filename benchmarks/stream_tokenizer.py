"""What the streaming tokenizer costs at minute 1 and at minute 10 of one recording, against encoding anew what has been heard.

    python benchmarks/stream_tokenizer.py [--whisper FOLDER] [--minutes 10] [--chunk-ms 80] [--rate 12.5] [--block-sec 4]

Ours: `TokenStream` with its caches, fed in chunks. The usual way, as the released code has no caches: at the end of every block,
the tokens of everything heard since the last cut at 30 s are computed again and the new ones kept. Both run over the same
recording, joined from the corpus, side by side, block by block; both are compared with the offline tokens. The codebook is drawn
from the encoder's own vectors: what it means does not matter to what it costs. Times are the processor's, not the clock's, for
shared machines; with one thread (OMP_NUM_THREADS=1) they are what the clock would say on an idle one.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from datamodules.cuts import read_cuts
from datamodules.recordings import load_recording
from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.streaming_whisper import TokenStream
from speechlm.nn.whisper_encoder import Bottleneck
from speechlm.nn.whisper_vq import WhisperVQ
from speechlm.provenance import short_commit
from speechlm.tokens.clock import Clock

CODES = 4096


def long_recording(cuts: str, seconds: float) -> torch.Tensor:
    """(N,) the corpus, one recording after the other, again and again."""
    parts: list[torch.Tensor] = []
    wanted = int(seconds * 16_000)
    while sum(map(len, parts)) < wanted:
        for cut in read_cuts(cuts):
            parts.append(torch.from_numpy(load_recording(cut, Clock())))
            if sum(map(len, parts)) >= wanted:
                break
    return torch.cat(parts)[:wanted]


def build(args: argparse.Namespace, audio: torch.Tensor) -> WhisperVQ:
    """A tokenizer whose codes lie among its vectors."""
    model = WhisperVQ(
        args.whisper,
        Clock(token_rate_hz=args.rate),
        Bottleneck(block_sec=args.block_sec),
        lambda dim: EmaVQ(dim, CODES, init="random"),
        floor="running",
    ).eval()
    assert model.encoder.quantizer is not None
    heard = min(len(audio), model.max_samples)
    with torch.no_grad():
        x, _ = model.encoder.below(*model.log_mel(audio[None, :heard], torch.tensor([heard])))
    picks = torch.randint(x.shape[1], (CODES,), generator=torch.Generator().manual_seed(0))
    codebook = x[0, picks] + 0.1 * x.std() * torch.randn(CODES, x.shape[2], generator=torch.Generator().manual_seed(1))
    model.encoder.quantizer.load_state_dict(model.encoder.quantizer.state_dict() | {"codebook": codebook})
    return model


class Anew:
    """The usual way: no caches."""

    def __init__(self, model: WhisperVQ) -> None:
        self.model, self.begin = model, 0
        self.tokens: list[int] = []

    def block(self, audio: torch.Tensor, end: int) -> None:
        """Tokens that are new at sample `end`."""
        if end - self.begin > self.model.max_samples:
            self.begin += self.model.max_samples
        heard = audio[None, self.begin : end]
        codes = self.model.tokenize(heard, torch.tensor([heard.shape[1]]))[0][0].tolist()
        known = len(self.tokens) - self.model.clock.num_tokens(self.begin)
        self.tokens += codes[known:]


def resident_mib() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def cache_mib(stream: TokenStream) -> float:
    """Keys and values that a stream keeps."""
    pasts = stream._piece.pasts
    kept = [x for past in pasts for x in (past.keys, past.values) if x is not None]
    return round(sum(x.numel() * x.element_size() for x in kept) / 2**20, 2)


def ends_of_blocks(model: WhisperVQ, stream: TokenStream, num_samples: int) -> list[int]:
    """Where tokens come out, the recording's end among them."""
    ends, begin = [], 0
    while begin < num_samples:
        piece = min(begin + model.max_samples, num_samples)
        ends += [*range(begin + stream.block_samples, piece, stream.block_samples), piece]
        begin = piece
    return ends


@dataclass
class Measured:
    """What one pass over the recording took."""

    chunks: list[tuple[int, float, bool]] = field(default_factory=list)  # end, seconds, whether tokens came
    anew: list[tuple[int, float]] = field(default_factory=list)  # end, seconds
    memory: dict[int, float] = field(default_factory=dict)  # MiB of the process after each minute
    cache_mib: float = 0.0
    tokens: list[int] = field(default_factory=list)
    tokens_anew: list[int] = field(default_factory=list)

    def minute(self, number: int) -> dict[str, float]:
        """Costs of one minute of audio."""
        own = [(1e3 * seconds, came) for end, seconds, came in self.chunks if minute_of(end) == number]
        blocks = [ms for ms, came in own if came]
        anew = [1e3 * seconds for end, seconds in self.anew if minute_of(end) == number]
        return {
            "ms_per_second_of_audio": round(sum(ms for ms, _ in own) / 60, 2),
            "ms_per_second_anew": round(sum(anew) / 60, 2),
            "chunk_with_tokens_ms_median": round(statistics.median(blocks), 2),
            "chunk_with_tokens_ms_max": round(max(blocks), 2),
            "other_chunks_ms_median": round(statistics.median(ms for ms, came in own if not came), 4),
            "resident_mib": self.memory[number],
        }


def minute_of(end: int) -> int:
    """1 for what ends in the first minute."""
    return -(-end // 960_000)


def measure(model: WhisperVQ, audio: torch.Tensor, chunk: int) -> Measured:
    """Both ways over one recording, a chunk for ours and then, at the end of a block, the block anew."""
    model.stream().push(audio[:200_000])  # warm-up
    measured, stream, usual, begin = Measured(), model.stream(), Anew(model), 0
    ends = ends_of_blocks(model, stream, len(audio))
    while begin < len(audio):
        piece = audio[begin : begin + chunk]
        begin += len(piece)
        start = time.process_time()
        new = stream.push(piece).tolist() + (stream.flush().tolist() if begin == len(audio) else [])
        measured.chunks.append((begin, time.process_time() - start, bool(new)))
        measured.tokens += new
        measured.cache_mib = max(measured.cache_mib, cache_mib(stream))
        while ends and ends[0] <= begin:
            start = time.process_time()
            usual.block(audio, ends[0])
            measured.anew.append((ends.pop(0), time.process_time() - start))
        measured.memory[minute_of(begin)] = resident_mib()
    measured.tokens_anew = usual.tokens
    return measured


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--whisper", default="assets/whisper-nano-en")
    parser.add_argument("--cuts", default="assets/asterisk-en/heldout.jsonl.gz")
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--chunk-ms", type=int, default=80)
    parser.add_argument("--rate", type=float, default=12.5)
    parser.add_argument("--block-sec", type=float, default=4.0)
    args = parser.parse_args()
    audio = long_recording(args.cuts, 60 * args.minutes)
    model = build(args, audio)
    measured = measure(model, audio, args.chunk_ms * 16)
    offline = model.tokenize(audio[None], torch.tensor([len(audio)]))[0][0].tolist()
    own = sum(seconds for _, seconds, _ in measured.chunks)
    result = {
        "commit": short_commit(),
        "torch": torch.__version__,
        "device": f"CPU, {torch.get_num_threads()} threads",
        "whisper": args.whisper,
        "width": model.encoder.embed_positions.weight.shape[1],
        "layers": model.encoder.after_layer,
        "codes": CODES,
        "token_rate_hz": args.rate,
        "chunk_ms": args.chunk_ms,
        "delay_sec": model.stream().delay_sec,
        "cache_mib": measured.cache_mib,
        "minute_1": measured.minute(1),
        f"minute_{args.minutes}": measured.minute(args.minutes),
        "ratio": round(sum(seconds for _, seconds in measured.anew) / own, 2),
        "x_real_time": round(60 * args.minutes / own),
    }
    print(json.dumps(result | agreement(measured.tokens, measured.tokens_anew, offline), indent=1))


def agreement(ours: list[int], usual: list[int], offline: list[int]) -> dict[str, int]:
    """Tokens that differ from the offline ones."""
    assert len(ours) == len(usual) == len(offline)
    return {
        "tokens": len(offline),
        "distinct_tokens": len(set(offline)),
        "differing_ours": sum(a != b for a, b in zip(ours, offline, strict=True)),
        "differing_anew": sum(a != b for a, b in zip(usual, offline, strict=True)),
    }


if __name__ == "__main__":
    main()
