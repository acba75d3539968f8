"""A chatbot of random weights, and its server in a thread, for tests."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from speechlm.serving.open import Runtime, open_voice
from speechlm.serving.voice import Limits, Voice
from speechlm.serving.web.app import build_server
from speechlm.serving.web.settings import ServerSettings

ROOT = Path(__file__).parents[1]
WHISPER = ROOT / "assets" / "whisper-nano-en"
LIMITS = Limits(audio_sec=20.0, text_chars=500, reply_ids=160, reply_sec=60.0)


def tiny_voice(folder: Path, limits: Limits = LIMITS, **runtime: Any) -> Voice:
    """The voice of a bundle."""
    return open_voice(folder, Runtime(device="cpu", activity="loudness", **runtime), limits)


def speech(seconds: float = 1.0, rate_hz: int = 16_000, seed: int = 0) -> np.ndarray:
    """Noise in syllables: loud enough for a judge of voice activity, different for every seed."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.15 * noise * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))).astype(np.float32)


def write_wav(path: Path, audio: np.ndarray, rate_hz: int = 16_000) -> Path:
    """A sound file; its path."""
    sf.write(path, audio, rate_hz)
    return path


class Running:
    """A server that runs."""

    def __init__(self, voice: Voice, settings: ServerSettings, port: int) -> None:
        self.voice, self.settings, self.port = voice, settings, port
        self.url = f"http://127.0.0.1:{port}"


@contextmanager
def serving(voice: Voice, **settings: Any) -> Iterator[Running]:
    """A server on a port of its own, until the block ends."""
    bounds = ServerSettings(port=0 or _free_port(), **settings)
    server = build_server(voice, bounds)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until, "the server did not start"
        time.sleep(0.02)
    try:
        yield Running(voice, bounds, bounds.port)
    finally:
        server.should_exit = True
        thread.join(15)


def _free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
