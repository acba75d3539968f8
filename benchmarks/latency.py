"""From the end of speech to the first byte of sound, over a loopback WebSocket: p50 and p95 of many turns, split by part.

    python benchmarks/latency.py                                    a model of random weights, small, on any machine
    python benchmarks/latency.py --model models/demo --dtype bfloat16 --streams 1 4

Speech is sent as fast as it is spoken, in pieces of 20 ms. Its end is said by the client, as by letting go of a button: the time
in which a judge of voice activity waits for more is not in the numbers, add `silence_duration_ms` (500) for hands-free. What the
server says of its parts is beside it; the rest is the wire, the event loop and base64. Replies are stopped at `--max_new` ids.
"""

import argparse
import asyncio
import base64
import json
import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import websockets.asyncio.client as ws

from speechlm.chat import warm_up
from speechlm.provenance import short_commit
from speechlm.serving.open import Runtime, open_voice
from speechlm.serving.random_parts import write_random_bundle
from speechlm.serving.voice import Limits
from tests.tiny_chat import Running, serving, speech

PARTS = ("hear_ms", "wait_ms", "think_ms", "decode_ms", "speak_ms")
RATE_HZ = 24_000


async def conversation(server: Running, turns: int, seconds: float, max_new: int, seed: int) -> list[dict[str, float]]:
    """Milliseconds of each turn of one client."""
    url = server.url.replace("http", "ws") + "/v1/realtime"
    measured = []
    async with ws.connect(url, max_size=None) as live:
        await _until(live, "session.created")
        audio = {"input": {"turn_detection": None}}
        await _say(live, "session.update", session={"audio": audio, "max_output_tokens": max_new})
        for turn in range(turns):
            await _speak(live, seconds, seed + turn)
            began = time.perf_counter()
            await _say(live, "input_audio_buffer.commit")
            await _say(live, "response.create")
            await _until(live, "response.output_audio.delta")
            first = 1000 * (time.perf_counter() - began)
            done = await _until(live, "response.done")
            timings = done["response"]["timings"]
            measured.append({"first_byte_ms": first, "wire_ms": first - timings["total_ms"], **timings})
    return measured


async def _speak(live: Any, seconds: float, seed: int) -> None:
    data = (speech(seconds, RATE_HZ, seed) * 32767).astype("<i2").tobytes()
    piece = RATE_HZ // 50 * 2
    began = time.perf_counter()
    for number, at in enumerate(range(0, len(data), piece)):
        await asyncio.sleep(max(0.0, began + 0.02 * number - time.perf_counter()))
        await _say(live, "input_audio_buffer.append", audio=base64.b64encode(data[at : at + piece]).decode())


async def _say(live: Any, kind: str, **fields: Any) -> None:
    await live.send(json.dumps({"type": kind, **fields}))


async def _until(live: Any, kind: str) -> dict[str, Any]:
    while True:
        event = json.loads(await live.recv())
        if event["type"] == "error" or (event["type"] == "response.done" and kind != "response.done"):
            raise RuntimeError(f"waited for {kind}, got {event}")
        if event["type"] == kind:
            return event


async def streams(server: Running, count: int, settings: argparse.Namespace) -> list[dict[str, float]]:
    """Turns of so many clients at once, `turns` altogether."""
    each = -(-settings.turns // count)
    clients = [conversation(server, each, settings.seconds, settings.max_new, 1000 * n) for n in range(count)]
    return [turn for one in await asyncio.gather(*clients) for turn in one]


def line(name: str, values: list[float]) -> str:
    """A row of the table."""
    p50, p95 = np.percentile(values, [50, 95])
    return f"| {name} | {p50:.0f} | {p95:.0f} |"


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="", help="folder of a bundle; random weights where not said")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--sglang", default="", help="address of an SGLang server")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--turns", type=int, default=50, help="altogether, of each number of streams")
    parser.add_argument("--seconds", type=float, default=2.0, help="of speech in a turn")
    parser.add_argument("--max_new", type=int, default=64, help="ids of a reply")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = settings.model or str(Path(folder) / "bundle")
        if not settings.model:
            write_random_bundle(model, "assets/whisper-nano-en")
        runtime = Runtime(settings.device, settings.dtype, sglang=settings.sglang)
        voice = open_voice(model, runtime, Limits(turns=8))
        voice = replace(voice, whole_blocks=not settings.model)  # 13 ids of text, then speech, as a tuned model does
        warm_up(voice)
        with serving(voice) as server:
            for count in settings.streams:
                report(count, asyncio.run(streams(server, count, settings)), settings)
        voice.close()


def report(count: int, turns: list[dict[str, float]], settings: argparse.Namespace) -> None:
    """What was measured with so many streams."""
    commit = short_commit()
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    print(f"\n{count} stream(s), {len(turns)} turns of {settings.seconds:g} s; {machine}, {os.cpu_count()} CPUs, load "
          f"{os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads, commit {commit}")  # fmt: skip
    print("| ms | p50 | p95 |\n|---|---|---|")
    for name in ("first_byte_ms", *PARTS, "wire_ms"):
        print(line(name.removesuffix("_ms").replace("_", " "), [turn[name] for turn in turns]))


if __name__ == "__main__":
    main()
