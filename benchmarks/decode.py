"""Speed of the flow decoder and the vocoder: batches against one by one, first chunk, and the cost of a chunk over a long stream.

    python benchmarks/decode.py [--network streaming] [--shape full] [--device cuda] [--dtype bfloat16] [--minutes 5]

Random weights in the shape of `configs/flow_decoder/libritts.yaml` (streaming), of the released decoder (released), or small. Two
baselines in the same run: recordings decoded one after the other, as the released code must, and streams that run the whole
prefix again for every chunk, as it does. Also printed: how far batched mels are from single ones, and streamed ones from whole.
On a CPU with one thread, seconds are the processor's, so that other work on the machine does not count.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechlm.nn.dit import DiT
from speechlm.nn.flow_stream import CachedStream, MelStream, WindowStream
from speechlm.nn.generator import Generator
from speechlm.nn.hift import HiFT
from speechlm.nn.length_regulator import ClockedTokens, StretchedTokens
from speechlm.nn.source_filter import SourceFilter
from speechlm.nn.speech_stream import SpeechStream
from speechlm.nn.token_encoder import TokenEncoder
from speechlm.nn.token_to_mel import Prompt, Sampling, TokenToMel
from speechlm.nn.unet import UNet
from speechlm.tokens.clock import Clock

CLOCK = Clock(sample_rate_hz=22_050, token_rate_hz=12.5, hop_samples=256)
CHUNK = 10
SHAPES: dict[tuple[str, str], Callable[[], tuple[Any, Any, Any]]] = {
    ("streaming", "full"): lambda: (TokenEncoder(512, 8, 1024, 3, left_blocks=5), ClockedTokens(), DiT()),
    ("streaming", "small"): lambda: (
        TokenEncoder(192, 4, 512, 2, left_blocks=5), ClockedTokens(), DiT(80, 256, 6, 4, 1024),
    ),
    ("released", "full"): lambda: (TokenEncoder(), StretchedTokens(), UNet()),
    ("released", "small"): lambda: (
        TokenEncoder(192, 4, 512, 2), StretchedTokens(), UNet(80, (128, 128), 1, 4, 4, 32),
    ),
}  # fmt: skip


def network_of(options: argparse.Namespace) -> TokenToMel:
    """Random weights; where training begins with zeros, small numbers, so that differences can be seen."""
    torch.manual_seed(0)
    encoder, regulator, estimator = SHAPES[options.network, options.shape]()
    network = TokenToMel(CLOCK, encoder=encoder, length_regulator=regulator, estimator=estimator)
    for name, parameter in network.named_parameters():
        if "modulation" in name or "outward" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return network.to(options.device).eval()


def vocoder_of(options: argparse.Namespace) -> Generator:
    """The released shape, or that of `configs/vocoder/embedded.yaml`; or the one for a CPU."""
    vocoder: Generator
    if options.vocoder == "source_filter":
        vocoder = SourceFilter(sample_rate_hz=CLOCK.sample_rate_hz)
    elif options.shape == "full":
        vocoder = HiFT()
    else:
        vocoder = HiFT(channels=128, f0_channels=64, resblock_kernels=(3, 7), source_kernels=(3, 7))
    return vocoder.to(options.device).eval()


def recordings_of(count: int, device: str) -> tuple[Tensor, Tensor]:
    """Random tokens of `count` recordings of 2 to 12 s."""
    draw = np.random.default_rng(0)
    lens = torch.from_numpy(np.sort(draw.integers(25, 151, count)))
    return torch.from_numpy(draw.integers(0, 16_384, (count, 150))).to(device), lens.to(device)


def seconds_of(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds and result."""
    if device != "cpu":
        torch.cuda.synchronize()
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    result = run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start, result


def offline(network: TokenToMel, vocoder: Generator, options: argparse.Namespace) -> dict[str, float]:
    """Real-time factors of batches and of one by one, and how far their mels are apart."""
    tokens, lens = recordings_of(options.recordings, options.device)
    sampling = Sampling(options.steps)

    def decode(first: int, behind: int) -> Tensor:
        mel, mel_lens = network.sample(
            tokens[first:behind, : int(lens[behind - 1])], lens[first:behind], sampling=sampling
        )
        vocoder(mel, mel_lens)
        return mel

    def batched() -> list[Tensor]:
        starts = range(0, len(lens), options.batch)
        return [row for start in starts for row in decode(start, min(start + options.batch, len(lens)))]

    def single() -> list[Tensor]:
        return [decode(row, row + 1)[0] for row in range(len(lens))]

    decode(0, 1)
    batched_sec, together = min((seconds_of(batched, options.device) for _ in range(2)), key=lambda one: one[0])
    single_sec, alone = min((seconds_of(single, options.device) for _ in range(2)), key=lambda one: one[0])
    spoken = CLOCK.seconds_of_tokens(int(lens.sum()))
    apart = max(float((a - b[:, : a.shape[1]]).abs().max()) for a, b in zip(alone, together, strict=True))
    return {
        "batched rtf": batched_sec / spoken,
        "single rtf": single_sec / spoken,
        "batched is faster by": single_sec / batched_sec,
        "largest difference of a mel": apart,
    }


def first_chunk(network: TokenToMel, vocoder: Generator, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds from the tenth token to the first samples."""
    tokens = recordings_of(options.repeats, options.device)[0][:, None, :CHUNK]

    def speak(number: int) -> Tensor:
        return SpeechStream(stream_of(network, options), vocoder.stream()).push(tokens[number])

    speak(0)
    times = [1000 * seconds_of(lambda n=n: speak(n), options.device)[0] for n in range(options.repeats)]
    return {"p50 ms": float(np.percentile(times, 50)), "p95 ms": float(np.percentile(times, 95))}


def long_stream(network: TokenToMel, vocoder: Generator, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of chunks (mel and sound) early and late in a stream, and what a mel costs with the whole prefix again."""
    chunks = max(30, int(options.minutes * 60 * CLOCK.token_rate_hz / CHUNK))
    draw = torch.randint(0, 16_384, (1, chunks * CHUNK), generator=torch.Generator().manual_seed(0)).to(options.device)
    stream = SpeechStream(stream_of(network, options), vocoder.stream())
    times = [1000 * seconds_of(lambda part=part: stream.push(part), options.device)[0] for part in draw.split(CHUNK, 1)]
    ten = max(10, chunks // 10)
    early, late = (float(np.median(part)) for part in (times[10 : 10 + ten], times[-ten:]))
    again = {
        f"prefix again, chunk {count}, ms": 1000
        * seconds_of(lambda n=count: prefix_again(network, draw, n, options), options.device)[0]
        for count in (10, 40)
        if count < chunks
    }
    return {"chunks": chunks, "early ms": early, "late ms": late, "late / early": late / early, **again}


def prefix_again(network: TokenToMel, tokens: Tensor, chunk: int, options: argparse.Namespace) -> Tensor:
    """One chunk as the released code makes it: all tokens and all mel before it as the prompt; the mel alone."""
    before, lens = chunk * CHUNK, torch.tensor([CHUNK], device=options.device)
    frames = CLOCK.frames_of_tokens(before)
    known, known_lens = (torch.tensor([n], device=options.device) for n in (before, frames))
    mel = torch.zeros(1, network.num_mels, frames, device=options.device)
    prompt = Prompt(tokens[:, :before], known, mel, known_lens)
    said = tokens[:, before : before + CHUNK]
    return network.sample(said, lens, prompt=prompt, sampling=Sampling(options.steps)).mel


def streamed_apart(network: TokenToMel, options: argparse.Namespace) -> float | None:
    """How far a streamed mel is from the whole one, where streams are exact."""
    if not network.causal:
        return None
    tokens, lens = recordings_of(1, options.device)
    tokens = tokens[:, : int(lens)]
    whole = network.sample(tokens, lens, sampling=Sampling(options.steps)).mel
    return float((stream_of(network, options).push(tokens, last=True) - whole).abs().max())


def stream_of(network: TokenToMel, options: argparse.Namespace) -> MelStream:
    """A new stream of one recording."""
    seeds, sampling = torch.zeros(1, dtype=torch.long, device=options.device), Sampling(options.steps)
    return (CachedStream if network.causal else WindowStream)(network, seeds, sampling=sampling)


@torch.no_grad()
def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("streaming", "released"), default="streaming")
    parser.add_argument("--shape", choices=("full", "small"), default="full")
    parser.add_argument("--vocoder", choices=("hift", "source_filter"), default="hift")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of autocast")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--recordings", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    network, vocoder = network_of(options), vocoder_of(options)
    with torch.autocast(options.device, torch.bfloat16, enabled=options.dtype == "bfloat16"):
        result = {
            "offline": offline(network, vocoder, options),
            "first chunk": first_chunk(network, vocoder, options),
            "stream": long_stream(network, vocoder, options),
            "streamed mel is off by": streamed_apart(network, options),
        }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    device = torch.cuda.get_device_name() if options.device != "cpu" else f"{torch.get_num_threads()} CPU threads"
    origin = {"commit": commit.stdout.strip(), "torch": torch.__version__, "on": device}
    print(json.dumps({**vars(options), **origin, **rounded(result)}))


def rounded(value: Any) -> Any:
    """Floats to four digits, in nested results."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
