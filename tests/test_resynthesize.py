"""Recording to tokens to recording: one file, a folder with its page, and what is refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from speechlm import resynthesize
from speechlm.nn.hift import HiFT
from speechlm.nn.token_to_mel import Sampling
from speechlm.resynthesis import Resynthesizer, open_resynthesizer
from speechlm.stages.flow_decoder import FlowDecoder
from speechlm.tokens.clock import Clock
from tests.tiny_flow import CLOCK, M, V, causal

GOLDEN_TOKENIZER = Path(__file__).parent / "golden" / "glm4voice_tokenizer"


class Loudness:
    """A tokenizer that hears how loud a token's samples are."""

    tokens_per_frame, window_samples, settings, hash = 1, 480_000, {}, ""

    def __init__(self, num_codes: int = V, token_rate_hz: float = 12.5) -> None:
        self.clock, self.num_codes = Clock(16_000, token_rate_hz), num_codes

    def tokenize(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        audio = torch.nn.functional.pad(audio, (0, -audio.shape[1] % self.clock.samples_per_token))
        loud = audio.unflatten(1, (-1, self.clock.samples_per_token)).square().mean(2).sqrt()
        tokens = (loud * 2 * self.num_codes).long().clamp(max=self.num_codes - 1)
        return tokens, torch.tensor([tokens.shape[1]])

    def move_to(self, device: torch.device) -> None:
        """Nothing to move."""


def decoder(vocoder: bool = True) -> FlowDecoder:
    hift = HiFT(num_mels=M, channels=16, f0_channels=8)
    sampling = Sampling(steps=2)
    return FlowDecoder(CLOCK, lambda _: causal(), sampling=sampling, vocoder=hift if vocoder else None).eval()


@pytest.fixture
def speak(monkeypatch: pytest.MonkeyPatch) -> Resynthesizer:
    torch.manual_seed(0)
    built = Resynthesizer(Loudness(), decoder())
    monkeypatch.setattr(resynthesize, "open_resynthesizer", lambda *_: built)
    return built


def speech(seconds: float, rate_hz: int = 16_000) -> np.ndarray:
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * 200 * time) * np.sin(3 * time)).astype(np.float32)


def run(*words: Any) -> None:
    resynthesize.main([*map(str, words), "--tokenizer", "t", "--decoder", "d", "--device", "cpu"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_file_is_spoken_again_as_long_as_it_was(speak: Resynthesizer, tmp_path: Path, stream: bool):
    soundfile.write(tmp_path / "in.wav", np.stack([speech(2.0, 44_100), np.zeros(88_200)], 1), 44_100)
    run(tmp_path / "in.wav", tmp_path / "new" / "out.flac", *(["--stream"] if stream else []))
    made, rate = soundfile.read(tmp_path / "new" / "out.flac")
    assert rate == 22_050 and made.std() > 1e-3
    assert len(made) == 2 * 22_050 // 256 * 256  # whole mel frames


def test_a_stream_makes_the_same_sound(speak: Resynthesizer):
    audio = speech(2.5)
    whole, streamed = (speak(audio, 16_000, stream=stream) for stream in (False, True))
    assert (whole.tokens == streamed.tokens).all() and len(whole.tokens) == 32
    assert np.abs(whole.made - streamed.made).max() < 1e-3
    assert np.abs(speak(audio, 16_000, seed=1).made - whole.made).max() > 1e-3


def test_a_folder_becomes_files_and_a_page_and_what_is_bad_is_named(speak: Resynthesizer, tmp_path: Path, capsys: Any):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    soundfile.write(source / "a.wav", speech(0.5), 16_000)
    soundfile.write(source / "b.flac", speech(1.0, 8_000), 8_000)
    soundfile.write(source / "short.wav", speech(0.05), 16_000)
    (source / "<i>broken.wav").write_bytes(b"none")
    (source / "notes.txt").write_text("no sound")
    run(source, out)
    assert {path.name for path in out.iterdir()} == {"a.wav.flac", "b.flac.flac", "index.html"}
    page = (out / "index.html").read_text()
    assert len(re.findall("<audio", page)) == 4 and len(re.findall("<img", page)) == 2
    assert "short.wav" in page and "0.050 s long" in page and "<i>broken" not in page and "&lt;i&gt;broken" in page
    said = "5 files in the folder = 2 resynthesised + 3 left out (1 no sound files, 2 not usable)"
    assert said in capsys.readouterr().out
    run(source, tmp_path / "first", "--limit", "2")
    assert (
        "= 1 resynthesised + 4 left out (2 beyond --limit, 1 no sound files, 1 not usable)" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), "must last at least one token, 0.08 s"),
        (speech(0.079), "must last at least one token, 0.08 s"),
        (np.full(16_000, np.nan, np.float32), "NaN or infinite"),
        (np.zeros(16_000, np.float32), "every sample of the recording is zero"),
        (np.ones((16_000, 2), np.float32), r"expected a mono waveform \(N,\)"),
        (np.ones(16_000 * 1801, np.float32), "at most 1800 s"),
    ],
)
def test_what_is_no_speech_is_refused(speak: Resynthesizer, audio: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        speak(audio, 16_000)


def test_one_token_is_enough(speak: Resynthesizer):
    assert len(speak(speech(0.08), 16_000).tokens) == 1


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"25 tokens per second of 32 codes, the decoder speaks 12.5 of 32"):
        Resynthesizer(Loudness(token_rate_hz=25), decoder())
    with pytest.raises(ValueError, match=r"of 33 codes, the decoder speaks 12.5 of 32"):
        Resynthesizer(Loudness(33), decoder())
    with pytest.raises(ValueError, match=r"set `model.init_args.vocoder`"):
        Resynthesizer(Loudness(), decoder(vocoder=False))


def test_wrong_arguments_end_with_a_word(speak: Resynthesizer, tmp_path: Path):
    with pytest.raises(SystemExit, match="does not exist"):
        run(tmp_path / "no.wav", tmp_path / "out.wav")
    with pytest.raises(SystemExit, match="holds no sound file"):
        run(tmp_path, tmp_path / "out")
    soundfile.write(tmp_path / "in.wav", speech(1.0), 16_000)
    with pytest.raises(SystemExit, match=r"must end in .wav or .flac"):
        run(tmp_path / "in.wav", tmp_path / "out.mp3")
    (tmp_path / "bad.wav").write_bytes(b"none")
    with pytest.raises(SystemExit, match="can not be read as sound"):
        run(tmp_path / "bad.wav", tmp_path / "out.wav")


def test_a_folder_that_is_no_decoder_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="is no run folder"):
        open_resynthesizer(str(GOLDEN_TOKENIZER), str(tmp_path))
