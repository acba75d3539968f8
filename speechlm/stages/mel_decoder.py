"""What a flow decoder promises to those who use it: speech tokens to log-mel, and through a vocoder to sound."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from speechlm.batch import ResynthesisBatch
from speechlm.nn.flow_input import rates, require_prompt, require_speakers
from speechlm.nn.flow_stream import CachedStream, MelStream, WindowStream
from speechlm.nn.generator import Generator
from speechlm.nn.mel import MelSpectrogram
from speechlm.nn.speech_stream import SpeechStream
from speechlm.nn.token_input import require_tokens
from speechlm.nn.token_to_mel import Mel, Prompt, Sampling, TokenToMel
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import Vocab


class MelDecoder(L.LightningModule):
    """A network that makes log-mel of speech tokens, with the average of its weights, where one is kept, in its place.

    Args:
        network: of one clock.
        sampling: how mel is made of noise, where a call does not say otherwise.
        speaker_vectors: see `FlowDecoder`.
        vocoder: likewise.
        max_prompt_sec: likewise.
    """

    average: nn.Module | None

    def __init__(
        self,
        network: TokenToMel,
        sampling: Sampling,
        speaker_vectors: str | None,
        vocoder: Generator | None,
        max_prompt_sec: float,
    ) -> None:
        super().__init__()
        self.clock: Clock = network.clock
        self.network, self.sampling, self.max_prompt_sec = network, sampling, max_prompt_sec
        self.mel = MelSpectrogram(self.clock.sample_rate_hz, network.num_mels, hop_samples=self.clock.hop_samples)
        self.speaker_vectors = None if speaker_vectors is None else _read_vectors(speaker_vectors, network)
        self._vocoder: tuple[Generator, ...] = ()  # hidden from the module tree
        if vocoder is not None:
            self.hear_through(vocoder)

    @property
    def vocab(self) -> Vocab:
        """The speech half of the vocabulary."""
        return Vocab(num_text=0, num_speech=self.network.num_tokens, controls=())

    def decode(
        self,
        speech_tokens: Tensor,
        speech_token_lens: Tensor,
        seed: int = 0,
        speakers: Tensor | None = None,
        prompt: Prompt | None = None,
        sampling: Sampling | None = None,
    ) -> Mel:
        """(B, T) speech tokens and (B,) tokens -> (B, M, F) log-mel and (B,) frames; each row as if it were alone.

        Args:
            speech_tokens: what is to be said.
            speech_token_lens: at least 1 each.
            seed: of the noise; the same makes the same mel.
            speakers: (B, S) speaker vectors.
            prompt: a recording whose voice is gone on with, see `prompt`; it is not repeated.
            sampling: steps and guidance, where not the stage's own.

        Raises:
            ValueError: what `speechlm.nn.token_input` and `speechlm.nn.flow_input` refuse.
        """
        with self._in_use() as network, torch.no_grad():
            require_tokens(speech_tokens, speech_token_lens, network.num_tokens)
            require_speakers(speakers, len(speech_tokens), network)
            require_prompt(prompt, len(speech_tokens), network, self.max_prompt_sec)
            seeds = torch.full_like(speech_token_lens, seed)
            return network.sample(speech_tokens, speech_token_lens, seeds, speakers, prompt, sampling or self.sampling)

    def prompt(
        self, tokens: Tensor, token_lens: Tensor, audio: Tensor, audio_lens: Tensor, sample_rate_hz: int
    ) -> Prompt:
        """A recording and its tokens as a prompt: (B, T), (B,), (B, N) waveform, (B,) samples.

        Raises:
            ValueError: the waveform has another rate than the decoder.
        """
        if sample_rate_hz != self.clock.sample_rate_hz:
            raise ValueError(f"the prompt has {sample_rate_hz} Hz, the decoder {rates(self.clock)}; resample it first")
        mel, mel_lens = self.mel(audio, audio_lens)
        return Prompt(tokens, token_lens, mel, mel_lens.minimum(self.clock.frames_of_tokens(token_lens)))

    def stream(
        self,
        batch_size: int = 1,
        first_tokens: int = 10,
        chunk_tokens: int = 10,
        window_tokens: int = 50,
        seed: int = 0,
        speakers: Tensor | None = None,
        prompt: Prompt | None = None,
        sampling: Sampling | None = None,
    ) -> MelStream:
        """Decode tokens as they come, with bounded work per chunk.

        A causal network streams exactly what `decode` of the whole makes; any other one in windows, see `WindowStream`. The
        stage is not to be trained meanwhile.

        Args:
            batch_size: recordings side by side.
            first_tokens: tokens of the first chunk, whole blocks.
            chunk_tokens: tokens of each further chunk, whole blocks.
            window_tokens: what is heard again before each chunk, by networks that are not causal.
            seed: of the noise.
            speakers: (B, S).
            prompt: see `decode`.
            sampling: see `decode`.

        Raises:
            ValueError: see `MelStream` and `decode`.
        """
        network = self.used.eval()
        require_speakers(speakers, batch_size, network)
        require_prompt(prompt, batch_size, network, self.max_prompt_sec)
        seeds = torch.full((batch_size,), seed, dtype=torch.long, device=self.device)
        settings: dict[str, Any] = {
            "first_tokens": first_tokens, "chunk_tokens": chunk_tokens, "speakers": speakers, "prompt": prompt,
            "sampling": sampling or self.sampling,
        }  # fmt: skip
        if network.causal:
            return CachedStream(network, seeds, **settings)
        return WindowStream(network, seeds, window_tokens, **settings)

    def speak(self, speech_tokens: Tensor, speech_token_lens: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
        """`decode` made heard: (B, N) waveform and (B,) samples.

        Raises:
            ValueError: there is no vocoder, or what `decode` refuses.
        """
        vocoder = self.vocoder()
        mel, mel_lens = self.decode(speech_tokens, speech_token_lens, **settings)
        with torch.no_grad():
            seeds = torch.full_like(mel_lens, settings.get("seed", 0))
            return vocoder(mel, mel_lens, seeds).audio, mel_lens * self.clock.hop_samples

    def speak_stream(self, batch_size: int = 1, seed: int = 0, **settings: Any) -> SpeechStream:
        """`stream` made heard."""
        return SpeechStream(self.stream(batch_size, seed=seed, **settings), self.vocoder().stream(batch_size, seed))

    def resynthesize(self, batch: ResynthesisBatch) -> tuple[Tensor, Tensor]:
        """What the tokens of recordings sound like: (B, N) and (B,) samples."""
        return self.speak(batch.speech_tokens, batch.speech_token_lens, speakers=self.speakers_of(batch))

    def vocoder(self) -> Generator:
        """The vocoder, on this stage's device.

        Raises:
            ValueError: there is none.
        """
        if not self._vocoder:
            raise ValueError("a flow decoder makes mel; set `model.init_args.vocoder` to hear it")
        return self._vocoder[0].to(self.device)

    def hear_through(self, vocoder: Generator) -> None:
        """Take another vocoder.

        Raises:
            ValueError: its rates are others.
        """
        self._vocoder = (_fitting(vocoder, self.network).eval(),)

    @property
    def used(self) -> TokenToMel:
        """The network that decodes: the average where there is one."""
        network = self.network if self.average is None else self.average
        assert isinstance(network, TokenToMel)
        return network

    def speakers_of(self, batch: ResynthesisBatch) -> Tensor | None:
        """(B, S) vectors of a batch's speakers, zeros where the batch names none; None where the stage has no vectors.

        Raises:
            ValueError: a speaker has no vector.
        """
        if self.speaker_vectors is None:
            return None
        missing = sorted({name for name in batch.speakers if name and name not in self.speaker_vectors})
        if missing:
            raise ValueError(
                f"no vector for speakers {missing[:5]}; add them to the file of `model.init_args.speaker_vectors`"
            )
        nobody = torch.zeros(self.network.speaker_width)
        return torch.stack([self.speaker_vectors.get(name, nobody) for name in batch.speakers]).to(self.device)

    @contextmanager
    def _in_use(self) -> Iterator[TokenToMel]:
        """The network that decodes, without dropout while it does."""
        network = self.used
        training = network.training
        network.eval()
        try:
            yield network
        finally:
            network.train(training)


def _read_vectors(path: str, network: TokenToMel) -> dict[str, Tensor]:
    """Vectors by name of the speaker.

    Raises:
        ValueError: the file is no safetensors, or a vector has another size.
    """
    try:
        vectors = load_file(path)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is no safetensors file of speaker vectors ({error})") from error
    wrong = {name: tuple(vector.shape) for name, vector in vectors.items() if vector.shape != (network.speaker_width,)}
    if wrong:
        name, shape = next(iter(wrong.items()))
        raise ValueError(f"speaker vectors in {path} have {network.speaker_width} numbers, got {shape} for {name!r}")
    return vectors


def _fitting(vocoder: Generator, network: TokenToMel) -> Generator:
    """A vocoder of the decoder's rates.

    Raises:
        ValueError: it has others.
    """
    ours = (network.clock.sample_rate_hz, network.clock.hop_samples, network.num_mels)
    theirs = (vocoder.sample_rate_hz, vocoder.hop_samples, vocoder.num_mels)
    if ours != theirs:
        raise ValueError(
            f"the decoder has {ours[0]} Hz, hop {ours[1]} and {ours[2]} mel bins, the vocoder {theirs[0]} Hz, hop {theirs[1]} "
            f"and {theirs[2]}; edit `model.init_args.vocoder` or `clock` in the config"
        )
    return vocoder
