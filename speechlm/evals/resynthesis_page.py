"""The listening page of resynthesised recordings: each beside its original, to hear and to see."""

from dataclasses import dataclass

import numpy as np
import torch

from speechlm.evals.pictures import mel_above_mel
from speechlm.evals.report_page import Page, card, facts, picture, plain, player, words
from speechlm.nn.mel import MelSpectrogram
from speechlm.sound import resample

OPUS_RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)


@dataclass(frozen=True)
class Pair:
    """A recording and what was made of it."""

    name: str
    original: np.ndarray  # (N,) float32
    made: np.ndarray  # (N,) float32
    num_tokens: int


def listening_page(pairs: list[Pair], sample_rate_hz: int, title: str, skipped: list[tuple[str, str]]) -> str:
    """One HTML file that needs nothing else.

    Args:
        pairs: what is to be heard.
        sample_rate_hz: of both sides.
        title: of the page.
        skipped: names and reasons of files that could not be used.
    """
    seconds = sum(len(pair.original) for pair in pairs) / sample_rate_hz
    page = Page(title, f"{len(pairs)} recordings, {seconds:.0f} s, {sample_rate_hz} Hz. Original and resynthesis.")
    page.cards([_card(pair, sample_rate_hz) for pair in pairs], grid=False)
    if skipped:
        page.heading("Left out", f"{len(skipped)} files could not be used")
        page.table(["file", "why"], [[name, why] for name, why in skipped])
    return page.render()


def _card(pair: Pair, rate_hz: int) -> str:
    seconds = len(pair.original) / rate_hz
    mel = MelSpectrogram(rate_hz, max_hz=None)
    above, below = (_mel(mel, audio) for audio in (pair.original, pair.made))
    sounds = [(name, sound(audio, rate_hz)) for name, audio in (("original", pair.original), ("made", pair.made))]
    length = ("length", plain(f"{seconds:.2f} s, {pair.num_tokens} tokens"))
    image = picture(mel_above_mel(above, below, mel.hop_samples / rate_hz), f"log-mels of {pair.name}")
    return card(words(pair.name), facts([*sounds, length]), image)


def sound(audio: np.ndarray, rate_hz: int) -> str:
    """A player at the next higher rate that Opus has."""
    to_hz = next((rate for rate in OPUS_RATES_HZ if rate >= rate_hz), OPUS_RATES_HZ[-1])
    return player(resample(audio, rate_hz, to_hz), to_hz)


def _mel(mel: MelSpectrogram, audio: np.ndarray) -> np.ndarray:
    """(N,) -> (M, F); what is shorter than a window is filled with silence."""
    audio = np.pad(audio, (0, max(0, mel.n_fft - len(audio))))
    return mel(torch.from_numpy(audio)[None])[0][0].numpy()
