"""Disturbed sound: what each way of disturbing does to a waveform, and how its effect on tokens is counted."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from speechlm.evals.listening import Heard
from speechlm.evals.perturbations import ALL, narrow_band, noise, telephone
from speechlm.evals.robustness import robustness
from speechlm.evals.token_agreement import edit_distance, edit_rate
from speechlm.tokens.clock import Clock
from tests.audio_corpus import tone

RATE = 16_000


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("a", "b", "edits"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)],
)
def test_known_distances(a: str, b: str, edits: int):
    assert edit_distance(*(np.array([ord(c) for c in text], dtype=np.int64) for text in (a, b))) == edits


def test_the_distance_is_that_of_the_textbook():
    generator = rng()
    for _ in range(20):
        a, b = (generator.integers(4, size=generator.integers(1, 15)) for _ in range(2))
        table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
        table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
        for i in range(1, len(a) + 1):
            for j in range(1, len(b) + 1):
                other = table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
                table[i, j] = min(other, table[i - 1, j] + 1, table[i, j - 1] + 1)
        assert edit_distance(a, b) == table[-1, -1]


def test_a_rate_is_over_all_reference_tokens():
    assert edit_rate([np.array([1, 2, 3]), np.array([4])], [np.array([1, 3]), np.array([4])]) == 0.25
    with pytest.raises(ValueError, match="not one reference token"):
        edit_rate([np.zeros(0)], [np.ones(3)])


@pytest.mark.parametrize("name", ALL)
def test_every_disturbance_gives_a_waveform_of_the_right_length(name: str):
    audio = tone(1.0, seed=3)
    made = ALL[name](audio, rng())
    factor = float(name.split()[1]) if name.startswith("speed") else 1.0
    assert made.dtype == np.float32 and abs(len(made) - len(audio) / factor) <= 1
    assert np.abs(made).max() <= 1.0 and not np.array_equal(made[: len(audio)], audio[: len(made)])
    assert np.array_equal(made, ALL[name](audio, rng()))


def test_noise_has_the_power_it_says():
    audio = tone(2.0)
    for snr_db in (20.0, 5.0):
        added = noise(snr_db)(audio, rng()) - audio
        measured = 10 * np.log10(np.mean(audio**2) / np.mean(added**2))
        assert measured == pytest.approx(snr_db, abs=0.2)


def test_speed_moves_the_pitch():
    time = np.arange(RATE) / RATE
    made = ALL["speed 1.1"](np.sin(2 * np.pi * 400 * time).astype(np.float32), rng())
    assert np.argmax(np.abs(np.fft.rfft(made))) * RATE / len(made) == pytest.approx(440, abs=2)


def test_a_telephone_has_no_highs_and_few_steps():
    white = 0.1 * rng().standard_normal(RATE).astype(np.float32)
    for disturb in (narrow_band, telephone):
        spectrum = np.abs(np.fft.rfft(disturb(white, rng()))) ** 2
        assert spectrum[4600:].mean() < 0.01 * spectrum[:3400].mean()
    assert len(np.unique(telephone(white, rng()))) <= 256


class Ear:
    """Hears the loudness of every 80 ms; understands everything until it is disturbed."""

    clock = Clock()

    def tokenize(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        frames = torch.nn.functional.pad(audio, (0, -audio.shape[1] % 1280)).unflatten(1, (-1, 1280))
        lens = -(-audio_lens // 1280)
        codes = (frames.abs().mean(dim=2) * 40).long()
        return codes.masked_fill(torch.arange(codes.shape[1]) >= lens[:, None], -1), lens

    def transcribe(self, audio: Tensor, audio_lens: Tensor, languages: list[str] | None = None) -> list[str]:
        self.asked = languages
        return ["one two"] * len(audio)

    def transcribe_unquantised(
        self, audio: Tensor, audio_lens: Tensor, languages: list[str] | None = None
    ) -> list[str]:
        raise AssertionError("nobody asks the unquantised model about disturbed sound")


def heard(count: int, language: str = "en") -> list[Heard]:
    made = []
    for seed in range(count):
        audio = tone(0.5 + 0.1 * seed, seed=seed)
        codes, lens = Ear().tokenize(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
        made.append(Heard(str(seed), audio, codes[0, : lens[0]].numpy(), "one two", "one two", None, language))
    return made


def test_undisturbed_sound_keeps_its_tokens_and_louder_noise_loses_more():
    ways = {"nothing": lambda audio, rng: audio, **{f"{db} dB": noise(db) for db in (30, 10, -5)}}
    found = robustness(Ear(), heard(5), ways, batch_seconds=1.5)
    rates = [row.token_edit_rate for row in found.values()]
    assert rates[0] == 0.0 and all(a <= b for a, b in pairwise(rates)) and rates[-1] > 0.3
    assert found["nothing"].recordings == 5
    assert found["nothing"].wer.rate == found["nothing"].wer_clean.rate == 0.0


def test_recordings_too_long_and_of_other_languages_are_left_out():
    long = Heard("long", np.zeros(26 * RATE, np.float32), np.zeros(325, int), "one", "one", None, "en")
    found = robustness(Ear(), [*heard(3, "es"), *heard(2, "en"), long], {"8 kHz": narrow_band})
    assert found["8 kHz"].recordings == 3
    assert robustness(Ear(), [long], ALL) == {}


def test_a_language_without_a_prompt_is_transcribed_without_one():
    ear = Ear()
    robustness(ear, heard(2, "es"), {"8 kHz": narrow_band}, languages={"en"})
    assert ear.asked == ["", ""]
    robustness(ear, heard(2, "es"), {"8 kHz": narrow_band})
    assert ear.asked == ["es", "es"]
