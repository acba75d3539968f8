"""Speech tokens to log-mel: the stage between language and sound."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from speechlm.batch import ResynthesisBatch
from speechlm.nn.averaged import average_of, follow
from speechlm.nn.flow_input import rates, require_prompt, require_speakers, require_tokens
from speechlm.nn.flow_stream import CachedStream, MelStream, WindowStream
from speechlm.nn.generator import Generator
from speechlm.nn.masks import length_mask
from speechlm.nn.mel import MelSpectrogram
from speechlm.nn.speech_stream import SpeechStream
from speechlm.nn.token_start import read_codebook, start_from
from speechlm.nn.token_to_mel import FlowTraining, Mel, Prompt, Sampling, TokenToMel
from speechlm.stages.gradient_guard import GradientGuard, GuardSettings
from speechlm.stages.optim import AdamWSettings
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import Vocab
from speechlm.updates import updates_of

ADAM = AdamWSettings(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, eps=1e-8, warmup_steps=2500, decay="constant")


class FlowDecoder(L.LightningModule):
    """Speech tokens to log-mel by conditional flow matching.

    What is used, at validation and by `decode`, is the average of the weights where one is kept. A run that starts from
    another's weights (`--init_from`) starts from its average.

    Args:
        clock: rates of the decoder's side: 22,050 Hz, 12.5 tokens per second, hop 256.
        network: class and settings: `TokenToMel`, or `ReleasedFlow` for released weights.
        optimizer: AdamW and its schedule.
        training: what is taken away from the conditions while training.
        sampling: how mel is made of noise, where a call does not say otherwise.
        ema_decay: of the average of the weights; null keeps none.
        guard: which updates are left out.
        speaker_vectors: safetensors file with one vector per name of a speaker, such as x-vectors; null trains without, and what
            is not said of a voice the decoder takes from its data.
        vocoder: makes the mel heard, at validation and by `speak`; it is neither trained nor saved here.
        max_prompt_sec: longest prompt.
        codebook: safetensors file of the tokenizer's vectors (`speechlm.export --format codebook`), from which the token
            embedding starts; read before a run's first step and not again. Null starts from noise, or from what `--init_from`
            brought.
        seed: of noise, times and what is taken away in training.
    """

    def __init__(
        self,
        clock: Clock,
        network: Callable[[Clock], TokenToMel] = TokenToMel,
        optimizer: AdamWSettings = ADAM,
        training: FlowTraining = FlowTraining(),  # noqa: B008 - frozen, and the schema of the config
        sampling: Sampling = Sampling(),  # noqa: B008
        ema_decay: float | None = 0.999,
        guard: GuardSettings = GuardSettings(),  # noqa: B008
        speaker_vectors: str | None = None,
        vocoder: Generator | None = None,
        max_prompt_sec: float = 30.0,
        codebook: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.clock, self.network = clock, network(clock)
        self.optimizer_settings = optimizer
        self.optimizer_settings.freeze(self)
        self.ema_decay = ema_decay
        self.average = None if ema_decay is None else average_of(self.network, ema_decay)
        self.flow_training, self.sampling, self.guard = training, sampling, GradientGuard(guard)
        self.mel = MelSpectrogram(clock.sample_rate_hz, self.network.num_mels, hop_samples=clock.hop_samples)
        self.speaker_vectors = None if speaker_vectors is None else _read_vectors(speaker_vectors, self.network)
        self._vocoder: tuple[Generator, ...] = ()  # hidden from the module tree
        if vocoder is not None:
            self.hear_through(vocoder)
        self.max_prompt_sec, self.codebook, self.seed = max_prompt_sec, codebook, seed
        self._batches = 0  # that were trained on
        self.train()

    # -- what a flow decoder promises ----------------------------------------------------------------------------------

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
            ValueError: what `speechlm.nn.flow_input` refuses.
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

    # -- training ------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        steps = self.optimizer_settings.steps_of(self.trainer.max_steps)
        optimizer, schedule = self.optimizer_settings.build(self, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """What a run can not be started with is said before its first step.

        Raises:
            ValueError: float16, in which the norm that the guard looks at is scaled.
        """
        if str(self.trainer.precision).startswith("16"):
            raise ValueError(
                f"a flow decoder trains in bf16-mixed or 32-true, got trainer.precision {self.trainer.precision!r}"
            )

    def on_train_start(self) -> None:
        """A new run starts from the average of what it was initialised from; its own is the same."""
        if self.trainer.global_step:
            return
        if self.codebook is not None:
            start_from(self.used.input_embedding.weight, read_codebook(self.codebook))
        if self.average is not None:
            self.network.load_state_dict(self.average.state_dict())

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Refuse a batch of other rates or another codebook, while it is in the host's memory."""
        if isinstance(batch, ResynthesisBatch):
            self._require(batch)
        return batch

    def training_step(self, batch: ResynthesisBatch, batch_idx: int) -> Tensor:
        place = (self.seed * 1_000_003 + self._batches) * self.trainer.world_size + self.global_rank
        self._batches += 1
        mel, mel_lens = self.mel(batch.audio, batch.audio_lens)
        loss = self._loss(self.network, batch, mel, mel_lens, place, self.flow_training)
        self.log("train/loss", loss.detach(), batch_size=len(batch), prog_bar=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer's step, and the average's after it."""
        super().optimizer_step(*args, **kwargs)
        left_out = self.guard.in_a_row or updates_of(self).left_out_at(self.trainer.global_step)
        if self.average is not None and self.ema_decay is not None and not left_out:
            follow(self.average, self.network, self.ema_decay, self.guard.seen - 1)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as the trainer says, and leave out what the guard does not let pass."""
        if updates_of(self).left_out_at(self.trainer.global_step):  # a callback said so, and took the gradients away
            return
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.log("train/grad_norm", norm)
        if self.guard.passes(norm, self.trainer.global_step):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            optimizer.zero_grad(set_to_none=True)  # without gradients AdamW changes neither weights nor moments
        self.log("train/skipped_updates", float(self.guard.skipped))

    def on_rewind(self) -> None:
        """The weights are older ones again, and good."""
        self.guard.in_a_row = 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Where the random numbers are, and what the guard knows."""
        checkpoint["batches"], checkpoint["guard"] = self._batches, self.guard.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        self._batches = checkpoint.get("batches", 0)
        self.guard.restore(checkpoint.get("guard", {}))

    def _loss(
        self,
        network: TokenToMel,
        batch: ResynthesisBatch,
        mel: Tensor,
        mel_lens: Tensor,
        seed: int,
        training: FlowTraining,
    ) -> Tensor:
        """The loss with all that is random, dropout too, a function of the seed: so a resumed run goes on exactly."""
        speakers, gpu = self.speakers_of(batch), [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(gpu):
            torch.manual_seed(seed)
            generator = torch.Generator(self.device).manual_seed(seed)
            tokens, lens = batch.speech_tokens, batch.speech_token_lens
            return network.loss(tokens, lens, mel, mel_lens, generator, speakers, training)

    def _require(self, batch: ResynthesisBatch) -> None:
        if batch.sample_rate_hz != self.clock.sample_rate_hz:
            raise ValueError(
                f"the batch has {batch.sample_rate_hz} Hz, the decoder {rates(self.clock)}; edit `clock` in the config"
            )
        if not batch.speech_tokens.shape[1]:
            raise ValueError(
                "the batch has no speech tokens; set `data.init_args.tokens: true`, without `segment_samples`"
            )
        require_tokens(batch.speech_tokens, batch.speech_token_lens, self.network.num_tokens)
        filled = -(-batch.audio_lens // self.clock.samples_per_token)
        if not torch.equal(filled, batch.speech_token_lens) or bool((batch.audio_lens < self.clock.hop_samples).any()):
            raise ValueError(
                f"recordings of {batch.audio_lens.tolist()} samples have {filled.tolist()} tokens at {rates(self.clock)}, got "
                f"{batch.speech_token_lens.tolist()}"
            )

    # -- validation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: ResynthesisBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The loss with noise that is the same each time, and the distance in log-mel of what is decoded."""
        name = self._val_name(dataloader_idx)
        mel, mel_lens = self.mel(batch.audio, batch.audio_lens)
        told = FlowTraining(drop=0.0, prompt_share=0.0)
        values = {"loss": self._loss(self.used, batch, mel, mel_lens, batch_idx, told)}
        made = self.decode(batch.speech_tokens, batch.speech_token_lens, speakers=self.speakers_of(batch)).mel
        made, mel = made[:, :, : mel.shape[2]], mel[:, :, : made.shape[2]]  # a last token may be filled in part
        values["mel_l1"] = (made - mel).abs().mean(1)[length_mask(mel_lens, mel.shape[2])].mean()
        for key, value in values.items():
            self.log(
                f"val/{name}/{key}",
                value,
                batch_size=len(batch),
                add_dataloader_idx=False,
                sync_dist=True,
                prog_bar=key == "loss",
            )

    def _val_name(self, index: int) -> str:
        names = getattr(getattr(self.trainer, "datamodule", None), "val_names", None)
        return names[index] if names else str(index)

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
