"""Speech tokens to log-mel, the stage between language and sound: how it learns."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from speechlm.batch import ResynthesisBatch
from speechlm.nn.averaged import average_of, follow
from speechlm.nn.flow_input import rates
from speechlm.nn.generator import Generator
from speechlm.nn.masks import length_mask
from speechlm.nn.token_input import require_tokens
from speechlm.nn.token_start import read_codebook, start_from
from speechlm.nn.token_to_mel import FlowTraining, Sampling, TokenToMel
from speechlm.stages.gradient_guard import GradientGuard, GuardSettings
from speechlm.stages.mel_decoder import MelDecoder
from speechlm.stages.optim import AdamWSettings
from speechlm.stages.validation import log_on_set
from speechlm.tokens.clock import Clock
from speechlm.updates import updates_of

ADAM = AdamWSettings(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, eps=1e-8, warmup_steps=2500, decay="constant")


class FlowDecoder(MelDecoder):
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
        super().__init__(network(clock), sampling, speaker_vectors, vocoder, max_prompt_sec)
        self.optimizer_settings = optimizer
        self.optimizer_settings.freeze(self)
        self.ema_decay = ema_decay
        self.average = None if ema_decay is None else average_of(self.network, ema_decay)
        self.flow_training, self.guard = training, GradientGuard(guard)
        self.codebook, self.seed = codebook, seed
        self._batches = 0  # that were trained on
        self.train()

    # -- training ------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self.optimizer_settings.for_stage(self)

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
        mel, mel_lens = self.mel(batch.audio, batch.audio_lens)
        told = FlowTraining(drop=0.0, prompt_share=0.0)
        values = {"loss": self._loss(self.used, batch, mel, mel_lens, batch_idx, told)}
        made = self.decode(batch.speech_tokens, batch.speech_token_lens, speakers=self.speakers_of(batch)).mel
        made, mel = made[:, :, : mel.shape[2]], mel[:, :, : made.shape[2]]  # a last token may be filled in part
        values["mel_l1"] = (made - mel).abs().mean(1)[length_mask(mel_lens, mel.shape[2])].mean()
        log_on_set(self, dataloader_idx, values, len(batch), shown="loss")
