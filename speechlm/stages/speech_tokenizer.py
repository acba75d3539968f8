"""The first stage: a Whisper with a quantised bottleneck, trained by transcribing through it."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.text import WordErrorRate

from speechlm.batch import AudioBatch
from speechlm.nn.glm4voice import is_released
from speechlm.nn.letter_ctc import LetterCTC, Letters
from speechlm.nn.log_mel import Floor
from speechlm.nn.losses import IGNORED
from speechlm.nn.masks import length_mask
from speechlm.nn.quantizer import sum_over_ranks
from speechlm.nn.scored_text import is_by_character, units_of
from speechlm.nn.streaming_whisper import TokenStream
from speechlm.nn.whisper_encoder import Bottleneck, QuantizerFactory
from speechlm.nn.whisper_source import Distillation, SourceForm, WhisperSource, logits_divergence, states_distance
from speechlm.nn.whisper_vq import Scored, WhisperVQ
from speechlm.stages.optim import AdamWSettings
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import Vocab
from speechlm.updates import updates_of
from speechlm.validation_sets import set_name


class SpeechTokenizer(L.LightningModule):
    """Speech to tokens at `clock.token_rate_hz`, learnt from transcripts.

    The loss is the cross-entropy of Whisper's decoder, which hears nothing but the quantised vectors, plus the quantiser's own
    loss, plus distillation from the unquantised model where asked for.

    Args:
        clock: rates; 50, 25, 12.5 or 6.25 tokens per second.
        whisper: name or folder of the Whisper checkpoint to start from, or a folder in the form of the released GLM-4-Voice
            tokenizer, whose training then goes on.
        quantizer: class and settings; null trains the same model without a bottleneck.
        bottleneck: where the encoder is narrowed, and how it attends.
        optimizer: AdamW, learning rates by part, schedule.
        distillation: losses that hold the model to the unquantised one.
        floor: "clip" is Whisper's normalisation by the whole recording's maximum, "running" its causal form.
        bare_prompt: transcripts open with the start id only, as in the released tokenizer.
        source: name or folder of the unquantised Whisper that the bottleneck is compared with and learns from; `whisper` itself
            where null, and needed only where `whisper` is a tokenizer already.
        source_form: how that Whisper was trained, see `WhisperSource`.
        letters: a linear reader of letters beside the decoder, so that vectors learn what was said from the first step on; it is
            no part of the tokenizer.
        codebook_window: optimizer steps over which usage and perplexity of the codebook are counted.
    """

    def __init__(
        self,
        clock: Clock,
        whisper: str,
        quantizer: QuantizerFactory | None = None,
        bottleneck: Bottleneck = Bottleneck(),  # noqa: B008 - frozen, and the schema of the config
        optimizer: AdamWSettings = AdamWSettings(),  # noqa: B008
        distillation: Distillation = Distillation(),  # noqa: B008
        floor: Floor = "clip",
        bare_prompt: bool = False,
        source: str | None = None,
        source_form: SourceForm = "published",
        letters: Letters | None = None,
        codebook_window: int = 50,
    ) -> None:
        super().__init__()
        self.clock = clock
        self.whisper = whisper
        self.model = WhisperVQ(whisper, clock, bottleneck, quantizer, floor, bare_prompt)
        dim = self.model.encoder.embed_positions.embedding_dim
        self.letters = letters
        self.letter_readers = nn.ModuleDict(
            {name: LetterCTC(dim, letters) for name in ("before", "behind")} if letters else {}
        )
        self.optimizer_settings = optimizer
        self.optimizer_settings.freeze(self)
        self.distillation = distillation
        self.source_name = source or (None if is_released(whisper) else whisper)
        if distillation.active and self.source_name is None:
            raise ValueError(f"{whisper} is quantised already; name the Whisper to distil from with `source`")
        self.source_form = source_form
        self.codebook_window = codebook_window
        self._source: tuple[WhisperSource, ...] = ()  # a tuple hides it from the module tree
        self._code_counts = torch.zeros(self.num_codes, dtype=torch.long)
        self._errors: dict[str, dict[str, WordErrorRate]] = {}
        self.train()  # transformers hands its modules over in eval mode, and Lightning leaves modes as they are

    # -- what a tokenizer promises -------------------------------------------------------------------------------------

    @property
    def num_codes(self) -> int:
        """Size of the codebook; 0 without a quantiser."""
        return self.model.encoder.quantizer.num_codes if self.model.encoder.quantizer else 0

    @property
    def languages(self) -> set[str] | None:
        """Codes that transcripts can be asked for in; None where the model is not told the language."""
        return None if self.model.text.bare else set(self.model.text.languages) or None

    @property
    def vocab(self) -> Vocab | None:
        """The speech half of the vocabulary; None without a quantiser."""
        return Vocab(num_text=0, num_speech=self.num_codes, controls=()) if self.num_codes else None

    def tokenize(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) waveform, (B,) samples -> (B, T) speech tokens, -1 behind the end, and (B,) tokens."""
        return self.model.tokenize(audio, audio_lens)

    def stream(self, approximate_floor: bool = False) -> TokenStream:
        """Tokens of a recording that is still arriving: `push` it in pieces of any size, then `flush`."""
        return self.model.stream(approximate_floor)

    def transcribe(self, audio: Tensor, audio_lens: Tensor, languages: list[str] | None = None) -> list[str]:
        """Greedy transcripts through the bottleneck."""
        return self.model.transcribe(audio, audio_lens, languages or [])

    def read(self, codes: Tensor, lens: Tensor, languages: list[str] | None = None) -> list[str]:
        """Greedy transcripts of (B, T) speech tokens and (B,) lengths, whoever made them: without a waveform.

        Raises:
            ValueError: see `WhisperVQ.read`.
        """
        return self.model.read(codes, lens, languages or [])

    def transcribe_unquantised(
        self, audio: Tensor, audio_lens: Tensor, languages: list[str] | None = None
    ) -> list[str]:
        """Greedy transcripts of the model this one started from."""
        return self.source().transcribe(audio, audio_lens, languages)

    def compare_with(self, source: str, form: SourceForm) -> None:
        """Take another unquantised model for the one this started from."""
        self.source_name, self.source_form, self._source = source, form, ()

    def source(self) -> WhisperSource:
        """The unquantised starting model, untouched, loaded when first needed.

        Raises:
            ValueError: training went on from a tokenizer, and `source` does not say what that started from.
        """
        if not self._source:
            if self.source_name is None:
                raise ValueError(f"{self.whisper} is quantised; name the Whisper it came from with `source`")
            bare = self.model.text.bare and self.source_form == "unpadded"  # trained here, with the same prompts
            self._source = (WhisperSource(self.source_name, self.source_form, bare),)
        return self._source[0].to(self.device)

    # -- training ------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self.optimizer_settings.for_stage(self)

    def training_step(self, batch: AudioBatch, batch_idx: int) -> STEP_OUTPUT:
        inputs, labels = self._text(batch)
        scored = self.model.score(batch.audio, batch.audio_lens, inputs)
        losses = self._losses(batch, scored, inputs, labels)
        loss = torch.stack(list(losses.values())).sum()
        self._log_train({"loss": loss, **{f"loss_{name}": value for name, value in losses.items()}}, len(batch))
        self._count_codes(scored)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer's step, with every micro-batch's forward inside, and then the codebook's, unless it was left out."""
        super().optimizer_step(*args, **kwargs)
        if self.model.encoder.quantizer is not None:
            if updates_of(self).left_out_at(self.trainer.global_step):
                self.model.encoder.quantizer.forget()
                return
            for name, value in self.model.encoder.quantizer.update().items():
                self.log(f"codebook/{name}", value, rank_zero_only=True)
            if (self.trainer.global_step + 1) % self.codebook_window == 0:
                self._log_codebook()

    def _losses(self, batch: AudioBatch, scored: Scored, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Every weighted term by name; their sum is the loss."""
        losses = {"asr": self.model.asr_loss(scored, labels)}
        if scored.quantized is not None:
            losses["vq"] = scored.quantized.loss
        if self.letters is not None:
            losses |= self._read_letters(scored, batch.texts)
        if self.distillation.active:
            losses |= self._distill(scored, self.source().score(batch.audio, batch.audio_lens, inputs), labels)
        return losses

    def _read_letters(self, scored: Scored, texts: list[str]) -> dict[str, Tensor]:
        assert self.letters is not None, "asked for where there are letters"
        readers, lens = self.letter_readers, scored.state_lens
        losses = {"letters": self.letters.before * readers["before"](scored.vectors, lens, texts)}
        behind = scored.vectors if scored.quantized is None else scored.quantized.vectors
        return losses | {"letters_behind": self.letters.behind * readers["behind"](behind, lens, texts)}

    def _distill(self, student: Scored, teacher: Scored, labels: Tensor) -> dict[str, Tensor]:
        losses = {}
        if self.distillation.states:
            distance = states_distance(student, teacher, self.model.encoder.pooling)
            losses["distill_states"] = self.distillation.states * distance
        if self.distillation.logits:
            kept = labels != IGNORED
            ours, theirs = self.model.decoder.logits(student.outputs[kept]), self.source().logits(teacher.outputs[kept])
            losses["distill_logits"] = self.distillation.logits * logits_divergence(ours, theirs)
        return losses

    def _text(self, batch: AudioBatch) -> tuple[Tensor, Tensor]:
        inputs, labels = self.model.text.encode(batch.texts, batch.languages or None)
        return inputs.to(self.device), labels.to(self.device)

    def _log_train(self, values: dict[str, Tensor], batch_size: int) -> None:
        for name, value in values.items():
            self.log(f"train/{name}", value.detach(), batch_size=batch_size, prog_bar=name == "loss")

    # -- codebook health -----------------------------------------------------------------------------------------------

    def _count_codes(self, scored: Scored) -> None:
        if scored.quantized is None:
            return
        codes = scored.quantized.codes
        inside = length_mask(scored.state_lens, codes.shape[1])
        counted = torch.bincount(codes[inside & (codes >= 0)], minlength=self.num_codes)
        self._code_counts = self._code_counts.to(counted) + counted

    def _log_codebook(self) -> None:
        counts = sum_over_ranks(self._code_counts.clone().to(self.device)).float()
        self._code_counts.zero_()
        if counts.sum() == 0:  # the codebook does not exist yet
            return
        share = counts / counts.sum()
        entropy = -(share * share.clamp(min=1e-12).log()).sum()
        self.log("codebook/usage", (counts > 0).float().mean(), rank_zero_only=True)
        self.log("codebook/perplexity", entropy.exp(), rank_zero_only=True)
        self.log(
            "codebook/bits_per_sec",
            entropy / torch.log(torch.tensor(2.0)) * self.clock.token_rate_hz,
            rank_zero_only=True,
        )

    # -- validation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: AudioBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        name = set_name(self.trainer, dataloader_idx)
        inputs, labels = self._text(batch)
        scored = self.model.score(batch.audio, batch.audio_lens, inputs)
        loss, counted = self.model.asr_loss(scored, labels), batch.repeated.count(False)
        self.log(f"val/{name}/loss", loss, batch_size=counted, add_dataloader_idx=False, sync_dist=True)
        heard = self.transcribe(batch.audio, batch.audio_lens, batch.languages)
        languages = batch.languages or [""] * len(batch)
        rates = self._error_rates(name)
        for said, text, code, repeated in zip(heard, batch.texts, languages, batch.repeated, strict=True):
            if not repeated and units_of(text, code):
                metric = "cer" if is_by_character(code) else "wer"
                rates[metric].update(" ".join(units_of(said, code)), " ".join(units_of(text, code)))

    def on_validation_epoch_end(self) -> None:
        for name, rates in self._errors.items():
            for metric, errors in rates.items():
                errors.update([], [])  # there may have been none
                rate = errors.compute().to(self.device)  # of all ranks, each of which asks for both metrics
                if rate.isfinite():
                    self.log(f"val/{name}/{metric}", rate, prog_bar=True)
                errors.reset()

    def _error_rates(self, name: str) -> dict[str, WordErrorRate]:
        """Of one set: words of some languages, characters of others."""
        if name not in self._errors:
            self._errors[name] = {metric: WordErrorRate().to(self.device) for metric in ("wer", "cer")}
        return self._errors[name]
