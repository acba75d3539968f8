"""The last stage: log-mel to waveform, learnt against judges that tell made sound from real."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from speechlm.batch import ResynthesisBatch
from speechlm.nn.discriminators import Discriminator, Judgement
from speechlm.nn.gan_losses import feature_loss, judging_loss, persuading_loss, pitch_loss, relative_loss
from speechlm.nn.generator import Generator, Spoken, Stream
from speechlm.nn.masks import length_mask
from speechlm.nn.mel import MelSpectrogram
from speechlm.nn.spectral_loss import SpectralLoss
from speechlm.stages.optim import AdamWSettings
from speechlm.stages.validation import log_on_set
from speechlm.tokens.clock import Clock

log = logging.getLogger(__name__)
MAX_SKIPPED = 20  # steps in a row without a finite gradient, after which a run stops
ADAM = AdamWSettings(lr=2e-4, betas=(0.9, 0.999), weight_decay=0.0, eps=1e-8, decay="constant")


@dataclass(frozen=True)
class VocoderLosses:
    """Weights of what the generator learns from; the paper's numbers.

    Args:
        persuading: of the judges' scores.
        features: of the distance in the judges' features.
        mel: of the L1 distance in log-mel of the whole band.
        relative: of the truncated relativistic loss, for the judges too; 0 leaves it out.
        pitch: of the L1 distance in hertz, in networks that listen for pitch; 0 leaves it out.
        spectra: of the distance in spectrograms of several resolutions, see `SpectralLoss`; 0, as in the paper, leaves it out.
    """

    persuading: float = 1.0
    features: float = 2.0
    mel: float = 45.0
    relative: float = 1.0
    pitch: float = 1.0
    spectra: float = 0.0


class Vocoder(L.LightningModule):
    """Log-mel to waveform.

    Each optimizer step first trains the judges on what the generator makes, then the generator with the judges as they are then,
    over the same `accumulate` batches: as many small batches learn what one large one learns. `trainer.global_step` counts the
    generator's steps; both optimizers are in the checkpoint.

    Args:
        clock: rates of the decoder's side; its hop is the generator's.
        generator: the network that speaks: `HiFT`, `read_hift` for released weights, `HifiGan` for a ready one, or
            `SourceFilter` for a CPU.
        discriminator: the judges; null for a vocoder that is only used, or trained for fewer steps than `judges_after`.
        optimizer: of the generator.
        discriminator_optimizer: of the judges.
        losses: weights.
        accumulate: batches per optimizer step (`trainer.accumulate_grad_batches` stays 1).
        clip: norm that the gradients of generator and judges are each clipped to; null leaves them (`trainer.gradient_clip_val`
            stays unset).
        true_pitch_steps: for so many steps the generator speaks with the true pitch, while it is still learning to hear it.
        judges_after: for so many steps there are no judges, and the generator learns from mel, spectra and pitch alone.
        seed: of the excitation's noise in training.
    """

    def __init__(
        self,
        clock: Clock,
        generator: Generator,
        discriminator: Discriminator | None = None,
        optimizer: AdamWSettings = ADAM,
        discriminator_optimizer: AdamWSettings = ADAM,
        losses: VocoderLosses = VocoderLosses(),
        accumulate: int = 1,
        clip: float | None = None,
        true_pitch_steps: int = 0,
        judges_after: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.clock, self.generator, self.discriminator = clock, generator, discriminator
        self.generator_optimizer, self.discriminator_optimizer = optimizer, discriminator_optimizer
        self.losses, self.accumulate, self.clip = losses, accumulate, clip
        self.true_pitch_steps, self.judges_after, self.seed = true_pitch_steps, judges_after, seed
        rate, hop = clock.sample_rate_hz, clock.hop_samples
        self.mel = MelSpectrogram(rate, generator.num_mels, hop_samples=hop)
        self.full_mel = MelSpectrogram(rate, generator.num_mels, hop_samples=hop, max_hz=None)
        self.spectra = SpectralLoss()
        self._window: list[ResynthesisBatch] = []
        self._skipped = self._skipped_ever = 0
        self._check_settings()
        self.generator_optimizer.freeze(generator)
        self.train()  # transformers hands its modules over in eval mode

    # -- what a vocoder promises ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, mel: Tensor, mel_lens: Tensor | None = None, seed: int = 0) -> Tensor:
        """(B, M, F) log-mel and (B,) frames -> (B, F * hop) waveform, zeros behind each end; each as if it were alone.

        Raises:
            ValueError: another number of mel bins, no frames, lengths that do not fit, or values that are not finite.
        """
        self._check_mel(mel, mel_lens)
        seeds = torch.full((mel.shape[0],), seed, dtype=torch.long, device=mel.device)
        return self.generator(mel, mel_lens, seeds).audio

    def stream(self, batch_size: int = 1, seed: int = 0) -> Stream:
        """Speak mels as they come, with bounded work per chunk and without seams; `decode` of the whole says the same."""
        return self.generator.stream(batch_size, seed)

    def resynthesize(self, batch: ResynthesisBatch) -> tuple[Tensor, Tensor]:
        """Copy synthesis: recordings to mel and back, (B, N) and (B,) samples."""
        mel, mel_lens = self.mel(batch.audio, batch.audio_lens)
        return self.decode(mel, mel_lens), mel_lens * self.clock.hop_samples

    # -- training ------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self.discriminator is None and not 0 <= self.trainer.max_steps <= self.judges_after:
            raise ValueError(
                f"a vocoder is trained against judges from step {self.judges_after} on; set `model.init_args.discriminator`, or "
                f"`model.init_args.judges_after` to no less than trainer.max_steps ({self.trainer.max_steps})"
            )
        sides: list[tuple[AdamWSettings, nn.Module, int]] = [(self.generator_optimizer, self.generator, 0)]
        if self.discriminator is not None:
            sides.append((self.discriminator_optimizer, self.discriminator, self.judges_after))
        pairs = [
            settings.build(module, max(0, settings.steps_of(self.trainer.max_steps) - idle))
            for settings, module, idle in sides
        ]
        return [optimizer for optimizer, _ in pairs], [schedule for _, schedule in pairs]

    def on_fit_start(self) -> None:
        """What a run can not be started with is said before its first step.

        Raises:
            ValueError: float16, whose gradients need a scaler that the two optimizers would have to share.
        """
        if str(self.trainer.precision).startswith("16"):
            raise ValueError(
                f"a vocoder trains in bf16-mixed or 32-true, got trainer.precision {self.trainer.precision!r}"
            )

    def on_train_batch_start(self, batch: ResynthesisBatch, batch_idx: int) -> None:
        """Log under the generator's steps; with manual optimisation Lightning (2.6) would count batches."""
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

    def training_step(self, batch: ResynthesisBatch, batch_idx: int) -> None:
        self._window.append(batch)
        if len(self._window) < self.accumulate and not self.trainer.is_last_batch:
            return
        window, self._window = self._window, []
        optimizers = self.optimizers(use_pl_optimizer=True)
        generator, *judges = cast(list[Any], optimizers if isinstance(optimizers, list) else [optimizers])
        # Where it is one batch, its graph is kept for the generator's turn; of several, the memory would not be there.
        spoken = [self._spoken(window[0], 0)] if len(window) == 1 else []
        alone = self.global_step < self.judges_after
        if alone or self._descend(judges[0].optimizer, self.discriminator, self._judge(window, spoken)):
            # Only the generator's step goes through Lightning's optimizer, which counts it.
            self._descend(generator, self.generator, self._speak(window, spoken))
        schedules = self.lr_schedulers()
        for schedule in cast(list[Any], schedules if isinstance(schedules, list) else [schedules])[: 1 if alone else 2]:
            schedule.step()

    def _judge(self, window: list[ResynthesisBatch], spoken: list[Spoken]) -> Iterator[Tensor]:
        """The judges' loss on each batch."""
        for i, batch in enumerate(window):
            with torch.no_grad():
                made = (spoken[i] if spoken else self._spoken(batch, i)).audio.detach()
            real, fake = self._told_apart(batch.audio[:, : made.shape[1]], made)
            losses = {"judging": judging_loss(real, fake)}
            if self.losses.relative:
                losses["judging_relative"] = self.losses.relative * relative_loss(real, fake)
            yield self._total(losses, "loss_judges", len(batch)) / len(window)

    def _speak(self, window: list[ResynthesisBatch], spoken: list[Spoken]) -> Iterator[Tensor]:
        """The generator's loss on each batch."""
        for i, batch in enumerate(window):
            made = spoken[i] if spoken else self._spoken(batch, i)
            terms = self._terms(batch, made)
            if self.global_step >= self.judges_after:
                terms = self._judged(batch, made) | terms
            yield self._total(terms, "loss", len(batch)) / len(window)

    def _judged(self, batch: ResynthesisBatch, spoken: Spoken) -> dict[str, Tensor]:
        """What the judges make of it, weighted, by name."""
        assert self.discriminator is not None
        weights = self.losses
        with torch.no_grad():
            real = self.discriminator(batch.audio[:, : spoken.audio.shape[1]])
        with _still(self.discriminator):
            fake = self.discriminator(spoken.audio)
        terms = {
            "persuading": weights.persuading * persuading_loss(fake),
            "features": weights.features * feature_loss(real, fake),
        }
        if weights.relative:
            terms["relative"] = weights.relative * relative_loss(fake, real)
        return terms

    def _terms(self, batch: ResynthesisBatch, spoken: Spoken) -> dict[str, Tensor]:
        """Every other weighted term of the generator's loss by name."""
        weights = self.losses
        terms = {"mel": weights.mel * F.l1_loss(self.full_mel(spoken.audio)[0], self.full_mel(batch.audio)[0])}
        if weights.spectra:
            terms["spectra"] = weights.spectra * self.spectra(spoken.audio, batch.audio[:, : spoken.audio.shape[1]])
        if weights.pitch and spoken.f0 is not None:
            terms["pitch"] = weights.pitch * pitch_loss(spoken.f0, self._true_pitch(batch, spoken.f0.shape[1]))
        return terms

    def _spoken(self, batch: ResynthesisBatch, index: int) -> Spoken:
        """What the generator makes of the `index`-th batch of a step, the same each time it is asked."""
        mel, _ = self.mel(batch.audio)  # a piece's silence behind its end is sound like any other
        given = self._true_pitch(batch, mel.shape[2]) if self.global_step < self.true_pitch_steps else None
        place = (self.global_step * self.accumulate + index) * self.trainer.world_size + self.global_rank
        seeds = torch.arange(len(batch), device=mel.device) + (self.seed * 1_000_003 + place) * 65_536
        return self.generator(mel, None, seeds, given)

    def _told_apart(self, real: Tensor, made: Tensor) -> tuple[list[Judgement], list[Judgement]]:
        """What the judges say of real and made waveforms, heard in one batch."""
        assert self.discriminator is not None
        both = self.discriminator(torch.cat([real, made]))
        size = len(real)
        return [_rows(j, slice(size)) for j in both], [_rows(j, slice(size, None)) for j in both]

    def _true_pitch(self, batch: ResynthesisBatch, frames: int) -> Tensor:
        if batch.f0 is None:
            raise ValueError(
                "the batch has no pitch to learn from; set `data.init_args.pitch: harvest` (or dio), or "
                "`model.init_args.losses.pitch: 0` and `true_pitch_steps: 0`"
            )
        return batch.f0[:, :frames]

    def _descend(self, optimizer: Any, module: nn.Module | None, losses: Iterator[Tensor]) -> bool:
        """One step down the sum of the losses; none, and False, where the gradient is not finite."""
        assert module is not None
        optimizer.zero_grad()
        for loss in losses:
            self.manual_backward(loss)
        limit = self.clip if self.clip is not None else float("inf")
        norm = nn.utils.clip_grad_norm_(module.parameters(), limit)
        self.log(f"train/grad_norm_{'judges' if module is self.discriminator else 'generator'}", norm)
        if not norm.isfinite():
            return self._skip(norm)
        optimizer.step()
        self._skipped = 0
        return True

    def _skip(self, norm: Tensor) -> bool:
        self._skipped += 1
        self._skipped_ever += 1
        self.log("train/steps_skipped", float(self._skipped_ever))
        log.warning("step %d was skipped: its gradient's norm is %s", self.global_step, norm.item())
        if self._skipped > MAX_SKIPPED:
            raise RuntimeError(
                f"{self._skipped} steps in a row had no finite gradient; lower the learning rates or set `model.init_args.clip`"
            )
        return False

    def on_rewind(self) -> None:
        """The weights are older ones again, and good."""
        self._skipped = 0

    def _total(self, terms: dict[str, Tensor], name: str, batch_size: int) -> Tensor:
        total = torch.stack(list(terms.values())).sum()
        for key, value in {name: total, **{f"loss_{key}": value for key, value in terms.items()}}.items():
            self.log(f"train/{key}", value.detach(), batch_size=batch_size, prog_bar=key == "loss")
        return total

    # -- validation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: ResynthesisBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Copy synthesis of whole recordings: distance in log-mel and in pitch."""
        mel, mel_lens = self.mel(batch.audio, batch.audio_lens)
        spoken = self.generator(mel, mel_lens)
        lens = mel_lens * self.clock.hop_samples
        made, true = (
            self.full_mel(audio, lens)[0] for audio in (spoken.audio, batch.audio[:, : spoken.audio.shape[1]])
        )
        real = length_mask(mel_lens, mel.shape[2])
        values = {"mel_l1": (made - true).abs().mean(1)[real].mean()}
        if spoken.f0 is not None and batch.f0 is not None:
            values["pitch_l1_hz"] = (spoken.f0 - self._true_pitch(batch, mel.shape[2])).abs()[real].mean()
        log_on_set(self, dataloader_idx, values, len(batch), shown="mel_l1")

    # -- what is refused -----------------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        ours = (self.clock.sample_rate_hz, self.clock.hop_samples)
        theirs = (self.generator.sample_rate_hz, self.generator.hop_samples)
        if ours != theirs:
            raise ValueError(
                f"the clock has {ours[0]} Hz and {ours[1]} samples per mel frame, the generator speaks {theirs[0]} Hz with "
                f"{theirs[1]}; edit `clock` or `model.init_args.generator` in the config"
            )
        if self.accumulate < 1 or self.judges_after < 0:
            raise ValueError(
                f"accumulate is at least 1 and judges_after at least 0, got {self.accumulate} and {self.judges_after}"
            )

    def _check_mel(self, mel: Tensor, mel_lens: Tensor | None) -> None:
        if mel.ndim != 3 or mel.shape[1] != self.generator.num_mels or mel.shape[2] == 0:
            raise ValueError(
                f"expected log-mels (B, {self.generator.num_mels}, F) of at least one frame, got {tuple(mel.shape)}"
            )
        if not mel.isfinite().all():
            raise ValueError("the log-mel has NaN or infinite values")
        if mel_lens is not None and (
            mel_lens.shape != mel.shape[:1] or bool((mel_lens < 1).any()) or bool((mel_lens > mel.shape[2]).any())
        ):
            raise ValueError(
                f"mel_lens must be {mel.shape[0]} lengths from 1 to {mel.shape[2]}, got {mel_lens.tolist()}"
            )


def _rows(judgement: Judgement, rows: slice) -> Judgement:
    """Of some recordings of a batch."""
    return Judgement(judgement.scores[rows], [feature[rows] for feature in judgement.features])


@contextmanager
def _still(module: nn.Module | None) -> Iterator[None]:
    """No gradients for a module's own weights, while they pass through it."""
    parameters = [p for p in (module.parameters() if module else ()) if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
