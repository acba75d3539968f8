"""A recording through its speech tokens and back: tokenizer, flow decoder and vocoder as one."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

from speechlm.devices import choose_device
from speechlm.load import load_stage, load_vocoder
from speechlm.nn.flow_released import ReleasedFlow
from speechlm.nn.generator import Generator
from speechlm.nn.glm4voice import is_released
from speechlm.nn.hift_released import read_hift
from speechlm.sound import resample
from speechlm.stages.flow_decoder import FlowDecoder
from speechlm.tokenizers import Glm4VoiceTokens, RunTokens
from speechlm.tokens.clock import Clock
from speechlm.tokens.tokenizer import Tokenizer

FLOW, HIFT = "flow.pt", "hift.pt"  # of a released decoder's folder
LONGEST_SEC = 1800.0


class Resynthesis(NamedTuple):
    """A recording, what was made of it, and what lies between."""

    original: np.ndarray  # (N,) float32 at the decoder's rate
    tokens: np.ndarray  # (T,) int64
    made: np.ndarray  # (N,) float32 at the decoder's rate


class Resynthesizer:
    """Tokens of one tokenizer, spoken by a decoder that was trained with it.

    Args:
        tokenizer: makes the tokens.
        decoder: with a vocoder.

    Raises:
        ValueError: the decoder was trained with tokens of another rate or another number of codes, or has no vocoder.
    """

    def __init__(self, tokenizer: Tokenizer, decoder: FlowDecoder) -> None:
        theirs = (tokenizer.clock.token_rate_hz, tokenizer.num_codes)
        ours = (decoder.clock.token_rate_hz, decoder.used.num_tokens)
        if theirs != ours:
            raise ValueError(
                f"the tokenizer makes {theirs[0]:g} tokens per second of {theirs[1]} codes, the decoder speaks {ours[0]:g} of "
                f"{ours[1]}; a decoder speaks the codes of the tokenizer it was trained with"
            )
        decoder.vocoder()
        self.tokenizer, self.decoder = tokenizer, decoder

    @property
    def sample_rate_hz(self) -> int:
        """Of what is made."""
        return self.decoder.clock.sample_rate_hz

    @torch.no_grad()
    def __call__(self, audio: np.ndarray, sample_rate_hz: int, seed: int = 0, stream: bool = False) -> Resynthesis:
        """(N,) float32 waveform in [-1, 1] at any rate.

        Args:
            audio: what is said.
            sample_rate_hz: its rate.
            seed: of the decoder's noise; the same makes the same sound.
            stream: decode by blocks as they would come, in a causal decoder to the same sound.

        Raises:
            ValueError: no mono waveform, not finite, silent, shorter than a token or longer than half an hour.
        """
        require_speech(audio, sample_rate_hz, self.tokenizer.clock)
        heard = torch.from_numpy(_at(audio, sample_rate_hz, self.tokenizer.clock.sample_rate_hz))
        tokens, lens = self.tokenizer.tokenize(heard[None], torch.tensor([len(heard)]))
        tokens, lens = tokens.to(self.decoder.device), lens.to(self.decoder.device)
        made = self._streamed(tokens, seed) if stream else self.decoder.speak(tokens, lens, seed=seed)[0]
        original = _at(audio, sample_rate_hz, self.sample_rate_hz)
        return Resynthesis(original, tokens[0].cpu().numpy(), made[0].float().cpu().numpy()[: len(original)])

    def _streamed(self, tokens: Tensor, seed: int) -> Tensor:
        stream = self.decoder.speak_stream(seed=seed)
        blocks = tokens.split(self.decoder.used.block_tokens, dim=1)
        return torch.cat([stream.push(block, last=i == len(blocks) - 1) for i, block in enumerate(blocks)], dim=1)


def open_resynthesizer(tokenizer: str, decoder: str, vocoder: str | None = None, device: str = "cpu") -> Resynthesizer:
    """Build one from run folders, or from released folders.

    Args:
        tokenizer: run folder, or folder of the released tokenizer.
        decoder: run folder, or folder with the released `flow.pt` and `hift.pt`.
        vocoder: run folder, `hift.pt` or `.safetensors`, instead of the one the decoder's config names.
        device: to compute on: auto, cpu, cuda or cuda:N.

    Raises:
        ValueError: a folder holds something else, or the parts do not fit each other.
    """
    tokens = Glm4VoiceTokens(tokenizer) if is_released(Path(tokenizer)) else RunTokens(tokenizer)
    stage = open_decoder(decoder, vocoder, device)
    tokens.move_to(stage.device)
    return Resynthesizer(tokens, stage)


def open_decoder(decoder: str, vocoder: str | None = None, device: str = "cpu") -> FlowDecoder:
    """A decoder with what makes it heard; the arguments are those of `open_resynthesizer`.

    Raises:
        ValueError: a folder holds something else, or the parts do not fit each other.
    """
    stage = _decoder(decoder)
    if vocoder is not None:
        stage.hear_through(_vocoder(vocoder, stage.clock.sample_rate_hz))
    stage.vocoder()
    return stage.to(choose_device(device))


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """(N,) float32 of the first channel and its rate.

    Raises:
        ValueError: no sound file that libsndfile reads.
    """
    try:
        audio, rate_hz = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"{path} can not be read as sound ({error})") from error
    return np.ascontiguousarray(audio[:, 0]), rate_hz


def require_speech(audio: np.ndarray, sample_rate_hz: int, clock: Clock) -> None:
    """Refuse what can not become tokens; see `Resynthesizer`."""
    if audio.ndim != 1 or sample_rate_hz < 1:
        raise ValueError(f"expected a mono waveform (N,) and its rate in Hz, got {audio.shape} at {sample_rate_hz}")
    seconds = len(audio) / sample_rate_hz
    shortest = clock.seconds_of_tokens(1)
    if not shortest <= seconds <= LONGEST_SEC:
        raise ValueError(
            f"the recording is {seconds:.3f} s long; it must last at least one token, {shortest:g} s, and at "
            f"most {LONGEST_SEC:g} s"
        )
    if not np.isfinite(audio).all():
        raise ValueError("the waveform has NaN or infinite samples")
    if not audio.any():
        raise ValueError("every sample of the recording is zero")


def _at(audio: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """(N,) at another rate, as float32 in [-1, 1]."""
    return np.clip(resample(audio, from_hz, to_hz).astype(np.float32), -1.0, 1.0)


def _decoder(path: str) -> FlowDecoder:
    if (Path(path) / FLOW).is_file():
        clock = Clock(sample_rate_hz=22_050, token_rate_hz=12.5, hop_samples=256)
        hift = read_hift(Path(path) / HIFT) if (Path(path) / HIFT).is_file() else None
        return FlowDecoder(
            clock, lambda c: ReleasedFlow(c, str(Path(path) / FLOW)), ema_decay=None, vocoder=hift
        ).eval()
    stage = load_stage(path)
    if not isinstance(stage, FlowDecoder):
        raise ValueError(f"{path} trained a {type(stage).__name__}, which is no flow decoder")
    return stage


def _vocoder(path: str, sample_rate_hz: int) -> Generator:
    return read_hift(path, sample_rate_hz) if Path(path).is_file() else load_vocoder(path)
