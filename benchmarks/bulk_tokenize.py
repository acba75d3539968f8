"""Speed of bulk tokenization against the usual loop, in one run.

    python benchmarks/bulk_tokenize.py [--whisper FOLDER | --large_v3] [--device cuda] [--recordings 300] [--batch_seconds 30]

Ours: `speechlm.tokenize` from manifest to written and committed shards, decoding included. The usual loop: one recording at a
time, its log-mel made on the CPU by transformers' feature extractor and padded to 30 s, through the same network, nothing
written. Both decode the same recordings with the same function, stop at the quantiser, and use the same precision. The recordings
are random draws from the corpus, so that lengths are mixed as they are there; the two sides alternate, a draw each.

The quantiser's codebook is made of the network's own vectors. `--large_v3` has the shape of Whisper large-v3 up to its 16th layer
and random weights, 16,384 codes: what the paper's tokenizer costs.

Also reported: the share of padding, which tokens differ from those of each recording alone (there should be none), and which from
the usual loop's, which sees silence behind the end of a recording where ours mirrors it.
"""

import argparse
import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from datamodules.cuts import read_cuts, write_cuts
from datamodules.recordings import load_recording
from datamodules.token_cuts import read_token_cuts, tokens_of
from datamodules.token_folder import start_folder
from datamodules.token_plan import count_manifests
from datamodules.token_shards import write_totals
from datamodules.tokenizing import BulkTokenizer, Making, header_of
from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.log_mel import LogMel
from speechlm.nn.masks import length_mask
from speechlm.nn.whisper_encoder import Bottleneck, WhisperVQEncoder
from speechlm.nn.whisper_tokens import WhisperTokens
from speechlm.provenance import short_commit
from speechlm.tokens.clock import Clock

LARGE_V3 = WhisperConfig(
    d_model=1280,
    encoder_layers=16,
    encoder_attention_heads=20,
    encoder_ffn_dim=5120,
    num_mel_bins=128,
    attn_implementation="sdpa",
)
CLOCK = Clock()


@dataclass(frozen=True)
class Taken:
    """Seconds on the wall, and of all threads' work; on a machine that others use too, the second says more."""

    wall: float
    cpu: float

    @staticmethod
    def since(begin: "Taken") -> "Taken":
        """From `begin` to now."""
        return Taken(time.perf_counter() - begin.wall, time.process_time() - begin.cpu)

    @staticmethod
    def now() -> "Taken":
        """Where to measure from."""
        return Taken(time.perf_counter(), time.process_time())


class Timed:
    """A tokenizer that adds up how long its device works.

    Args:
        tokenizer: the real one.
        device: where.
    """

    def __init__(self, tokenizer: WhisperTokens, device: torch.device) -> None:
        self.tokenizer, self.device, self.seconds = tokenizer, device, 0.0
        self.clock, self.num_codes, self.window_samples = CLOCK, tokenizer.num_codes, tokenizer.window_samples
        self.tokens_per_frame, self.settings, self.hash = 1, tokenizer.settings, tokenizer.hash

    def tokenize(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """The real one's tokens."""
        self.wait()
        begin = time.perf_counter()
        tokens = self.tokenizer.tokenize(audio, audio_lens)
        self.wait()
        self.seconds += time.perf_counter() - begin
        return tokens

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def move_to(self, device: torch.device) -> None:
        """It is there."""


@dataclass
class Counts:
    """What the pipeline tells while it works."""

    seconds: float = 0.0
    padded_seconds: float = 0.0

    def kept(self, cuts: int) -> None:
        """Nothing is there beforehand."""

    def made(self, cuts: int, seconds: float, padded_seconds: float) -> None:
        """Count."""
        self.seconds += seconds
        self.padded_seconds += padded_seconds


def network(args: argparse.Namespace) -> WhisperTokens:
    """The tokenizer under test, on its device."""
    torch.manual_seed(0)
    if args.large_v3:
        encoder, codes, layers = WhisperEncoder(LARGE_V3), 16_384, 16
    else:
        model = WhisperForConditionalGeneration.from_pretrained(args.whisper, dtype=torch.float32)
        encoder, codes = model.model.encoder, args.codes
        layers = len(encoder.layers) // 2
    log_mel = LogMel(encoder.config.num_mel_bins, CLOCK.samples_per_token).to(args.device)
    bottleneck = Bottleneck(after_layer=layers)
    vq = WhisperVQEncoder(encoder, 4, bottleneck, lambda dim: EmaVQ(dim, codes, init="random")).eval().to(args.device)
    fill_codebook(vq, log_mel, args.cuts)
    return WhisperTokens(log_mel, vq, CLOCK)


@torch.no_grad()
def fill_codebook(encoder: WhisperVQEncoder, log_mel: LogMel, cuts: str) -> None:
    """Codes are vectors of the network, drawn from recordings; where those are too few, with noise of 1 % added."""
    assert isinstance(encoder.quantizer, EmaVQ)
    device, vectors = encoder.quantizer.codebook.device, []
    for cut in usable_cuts(cuts)[:100]:
        audio = torch.from_numpy(load_recording(cut, CLOCK))[None].to(device)
        x, _ = encoder.below(*log_mel(audio, torch.tensor([audio.shape[1]], device=device)))
        vectors.append(x[0])
    pool = torch.cat(vectors)
    draw = torch.randint(len(pool), (encoder.quantizer.num_codes,), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(len(draw), pool.shape[1], generator=torch.Generator().manual_seed(1)).to(device)
    encoder.quantizer.codebook.copy_(pool[draw.to(device)] + 0.01 * pool.std() * noise)


def usable_cuts(path: str) -> list[Cut]:
    """Cuts that the usual loop can take too, in a random order."""
    cuts = [cut for cut in read_cuts(path) if 0.1 <= cut.duration <= 30.0]
    random.Random(0).shuffle(cuts)
    return cuts


def drawn(path: str, recordings: int, seed: int) -> list[Cut]:
    """A random draw; with repetition, under new names, where the corpus has too few."""
    cuts = usable_cuts(path)
    chosen = random.Random(seed)
    if recordings <= len(cuts):
        return chosen.sample(cuts, recordings)
    return [cut.with_id(f"{i}-{cut.id}") for i, cut in enumerate(chosen.choices(cuts, k=recordings))]


def ours(cuts: list[Cut], tokenizer: Timed, making: Making, folder: Path) -> tuple[Taken, Counts, list[np.ndarray]]:
    """Seconds from manifest to the last commit, what was counted, and the tokens in the order of the cuts."""
    write_cuts(cuts, folder / "cuts.jsonl")
    counts = Counts()
    begin = Taken.now()
    header = header_of(count_manifests([str(folder / "cuts.jsonl")]), tokenizer, making)
    out = start_folder(folder / "tokens", header)
    BulkTokenizer(out, tokenizer, making, tokenizer.device, counts).run()
    taken = Taken.since(begin)
    write_totals(out)
    return taken, counts, [tokens_of(cut) for cut in read_token_cuts(out.path)]


@torch.no_grad()
def usual(
    cuts: list[Cut], tokenizer: WhisperTokens, device: torch.device, precision: str
) -> tuple[Taken, list[np.ndarray]]:
    """Seconds, and the tokens, of the usual loop."""
    extractor = WhisperFeatureExtractor(feature_size=tokenizer.log_mel.filters.shape[1])
    encoder, tokens = tokenizer.encoder, []
    assert encoder.quantizer is not None
    begin = Taken.now()
    for cut in cuts:
        audio = load_recording(cut, CLOCK)
        mel = extractor(audio, sampling_rate=16_000, return_tensors="pt").input_features.to(device)
        num_tokens = CLOCK.num_tokens(len(audio))
        lens = torch.tensor([num_tokens * CLOCK.samples_per_token // CLOCK.hop_samples], device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            x, _ = encoder.below(mel, lens)
            codes = encoder.quantizer(x, length_mask(torch.tensor([num_tokens], device=device), x.shape[1])).codes
        tokens.append(codes[0, :num_tokens].cpu().numpy())
    return Taken.since(begin), tokens


def alone(cuts: list[Cut], tokenizer: WhisperTokens, device: torch.device, precision: str) -> list[np.ndarray]:
    """Tokens of every recording by itself, unpadded."""
    tokens = []
    for cut in cuts:
        audio = torch.from_numpy(load_recording(cut, CLOCK))[None].to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            codes, _ = tokenizer.tokenize(audio, torch.tensor([audio.shape[1]], device=device))
        tokens.append(codes[0].cpu().numpy())
    return tokens


def differing(some: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Share of tokens that are not the same."""
    same = [float((a == b).sum()) if len(a) == len(b) else 0.0 for a, b in zip(some, others, strict=True)]
    return 1.0 - sum(same) / sum(map(len, some))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--whisper", default="assets/whisper-nano-en")
    parser.add_argument("--large_v3", action="store_true", help="random weights in the shape of Whisper large-v3")
    parser.add_argument("--codes", type=int, default=512)
    parser.add_argument("--cuts", default="assets/asterisk-en/train.jsonl.gz")
    parser.add_argument("--recordings", type=int, default=300, help="in a draw")
    parser.add_argument("--usual_recordings", type=int, help="of a draw that the usual loop takes; all where not given")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--batch_seconds", type=float, default=30.0)
    parser.add_argument("--decode_threads", type=int, default=2)
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device(args.device)
    tokenizer = network(args)
    timed = Timed(tokenizer, device)
    making = Making(
        shard_size=1000, batch_seconds=args.batch_seconds, precision=args.precision, decode_threads=args.decode_threads
    )
    warm = drawn(args.cuts, 20, 99)
    with tempfile.TemporaryDirectory() as folder:
        ours(warm, timed, making, Path(folder))
    usual(warm[:3], tokenizer, device, args.precision)
    timed.seconds, rows = 0.0, []
    for seed in range(args.draws):
        cuts = drawn(args.cuts, args.recordings, seed)
        some = cuts[: args.usual_recordings]
        with tempfile.TemporaryDirectory() as folder:
            taken, counts, tokens = ours(cuts, timed, making, Path(folder))
        usual_taken, usual_tokens = usual(some, tokenizer, device, args.precision)
        heard = sum(cut.duration for cut in some)
        rows.append(
            {
                "ours": counts.seconds / taken.wall,
                "usual": heard / usual_taken.wall,
                "ours_cpu": counts.seconds / taken.cpu,
                "usual_cpu": heard / usual_taken.cpu,
                "seconds": counts.seconds,
                "padded": counts.padded_seconds,
                "not_as_alone": differing(tokens[: len(some)], alone(some, tokenizer, device, args.precision)),
                "not_as_usual": differing(tokens[: len(some)], usual_tokens),
            }
        )
    print(json.dumps(result(args, rows, timed.seconds, len(some)), indent=1))


def result(args: argparse.Namespace, rows: list[dict[str, float]], device_seconds: float, usual_count: int) -> dict:
    """What is reported."""
    speech = sum(row["seconds"] for row in rows)
    ratios = [row["ours"] / row["usual"] for row in rows]
    cuda = args.device.startswith("cuda")
    mean = speech / (args.recordings * args.draws)
    return {
        "commit": short_commit(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "network": "large-v3, 16 layers, random" if args.large_v3 else args.whisper,
        "precision": args.precision,
        "recordings": f"{args.draws} draws of {args.recordings}, the usual loop {usual_count} of each",
        "mean_recording_sec": round(mean, 2),
        "x_real_time": {
            "ours": round(len(rows) / sum(1 / row["ours"] for row in rows), 1),
            "usual": round(len(rows) / sum(1 / row["usual"] for row in rows), 1),
            "ours, device alone": round(speech / device_seconds, 1),
        },
        "x_real_time_of_a_cpu_second": {
            side: round(len(rows) / sum(1 / row[f"{side}_cpu"] for row in rows), 1) for side in ("ours", "usual")
        },
        "ratio_of_cpu_seconds": round(sum(row["ours_cpu"] / row["usual_cpu"] for row in rows) / len(rows), 2),
        "ratio_of_draws": [round(ratio, 2) for ratio in ratios],
        "ratio": round(sum(ratios) / len(ratios), 2),
        "padding_share": {
            "ours": round(1 - speech / sum(row["padded"] for row in rows), 3),
            "usual": round(1 - mean / 30.0, 3),
        },
        "tokens_unlike_those_alone": max(row["not_as_alone"] for row in rows),
        "tokens_unlike_the_usual": round(max(row["not_as_usual"] for row in rows), 5),
    }


if __name__ == "__main__":
    main()
