"""The language model of speech and text: next-token prediction over packed rows of both."""

import logging
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim import Optimizer

from speechlm.batch import RowBatch
from speechlm.fsdp2 import data_mesh
from speechlm.nn.causal_lm import NewRows, blocks, extend_vocabulary, load_causal_lm, start_speech_rows
from speechlm.nn.document_attention import Attention
from speechlm.nn.ema import Ema, local
from speechlm.nn.lora import Lora, add_lora
from speechlm.nn.packed_lm import PackedLM, RowLosses, training_cost
from speechlm.nn.recompute import Recompute, recompute
from speechlm.nn.speed import Speed, compile_layers, use_float8
from speechlm.nn.token_start import read_codebook
from speechlm.stages.optim import AdamWSettings
from speechlm.stages.tally import TOKENS, Tally
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import Vocab
from speechlm.updates import updates_of
from speechlm.validation_sets import set_name

log = logging.getLogger(__name__)
UNIT = 2.0**13  # losses are summed in units of so many ids until their number is known; a power of two rounds nothing
ADAM = AdamWSettings(6e-5, (0.9, 0.95), weight_decay=0.1, eps=1e-8, decay="linear", min_lr=6e-6, fused=True)


class SpeechLM(L.LightningModule):
    """A text language model that learns speech: any causal LM of transformers with rows added to its vocabulary.

    Every id that is to be predicted weighs the same, whichever rank and micro-batch of a step it is in: the gradient is that of
    all of them in one batch. Under `speechlm.fsdp2.FSDP2` the weights are spread by FSDP2, layer by layer; with
    `precision: bf16-mixed` they are computed with in bfloat16, kept and summed in float32.

    Args:
        clock: rates of the speech tokens.
        vocab: `vocab.json` of the rows, or its values.
        lm: name or folder of the language model to start from.
        from_scratch: take its configuration only.
        text_tokenizer: name or folder of the text tokenizer, for exports; the language model's own if empty.
        new_rows: what the embeddings of new ids are at first.
        codebook: safetensors file of the tokenizer's vectors (`speechlm.export --format codebook`), by which the embeddings of
            speech ids are laid out when a run begins; not read when it goes on. Null leaves them to `new_rows`.
        attention: "flex" skips blocks that no document spans, "varlen" computes documents one by one, "sdpa" has a dense mask;
            "auto" is flex on a GPU and varlen elsewhere.
        lora: train a few numbers beside the frozen weights; null trains everything.
        optimizer: AdamW and its schedule.
        activation_checkpointing: compute layers again in the backward pass instead of keeping what they computed: all of them, or
            with a number n every n-th; "selective" and "products" keep attention and half or all of the matrix products.
        speed: compiled layers, float8 products, the loss's kernel.
        loss_chunk: positions whose logits exist at a time, forward, and as many logits backward; null is a number that takes a
            third of a GiB at most. Where it is all positions of a micro-batch, logits are computed once and not twice.
        z_loss: weight of the squared log-denominator of the softmax, against drifting logits.
        ema_decay: keep an average of the weights beside them, for export; null keeps none.
        max_skipped: updates in a row without a finite gradient, after which the run stops.
    """

    def __init__(
        self,
        clock: Clock,
        vocab: str | Vocab,
        lm: str,
        from_scratch: bool = False,
        text_tokenizer: str = "",
        new_rows: NewRows = NewRows(),  # noqa: B008 - frozen, and the schema of the config
        codebook: str | None = None,
        attention: Attention = "auto",
        lora: Lora | None = None,
        optimizer: AdamWSettings = ADAM,
        activation_checkpointing: Recompute = False,
        speed: Speed = Speed(),  # noqa: B008 - frozen, and the schema of the config
        loss_chunk: int | None = None,
        z_loss: float = 0.0,
        ema_decay: float | None = None,
        max_skipped: int = 10,
    ) -> None:
        super().__init__()
        self.clock, self.text_tokenizer, self.codebook = clock, text_tokenizer or lm, codebook
        self.vocab = vocab if isinstance(vocab, Vocab) else Vocab.load(vocab)
        model = load_causal_lm(lm, from_scratch, new_rows.seed)
        extend_vocabulary(model, self.vocab.num_text, len(self.vocab), new_rows)
        if lora is not None:
            add_lora(model, blocks(model), lora, new_rows.seed)
        first = self.first_predicted()
        self.cost, self.speed = training_cost(model, first), speed
        if speed.float8:
            use_float8(blocks(model), speed.float8)
        recompute(blocks(model), activation_checkpointing)
        self.model = PackedLM(model, attention, loss_chunk, z_loss, speed.loss, first)
        self.optimizer_settings = optimizer
        self.optimizer_settings.freeze(self)
        self.ema = None if ema_decay is None else Ema(self.model, ema_decay)
        self.max_skipped, self.skipped, self._skipped_in_a_row = max_skipped, 0, 0
        self._trained: list[nn.Parameter] = []  # what the optimizer has; asking all modules takes longer than clipping
        self._step: Tally | None = None  # of this optimizer step, on this rank
        self._window: Tally | None = None  # since the last log, on all ranks
        self._seen: Tally | None = None  # of the whole run, on all ranks
        self._seen_before: dict[str, list[float]] = {}
        self._validated: dict[str, Tally] = {}
        self._sharded = self._compiled = False
        self.train()  # transformers hands its modules over in eval mode, and Lightning leaves modes as they are

    # -- what a language model promises --------------------------------------------------------------------------------

    @property
    def lm(self) -> Any:
        """The plain transformers model."""
        return self.model.lm

    def first_predicted(self) -> int:
        """First of the ids that the softmax is over; all in a language model."""
        return 0

    def score(self, batch: RowBatch) -> RowLosses:
        """Losses of every id of a batch that is to be predicted.

        Raises:
            ValueError: an id is outside the vocabulary; of what the embedding has more rows for, nothing was ever learnt.
        """
        if batch.ids.device.type == "cpu":  # elsewhere it was looked at before it went there
            self._refuse_unknown(batch)
        return self.model(batch.ids, batch.loss_mask, batch.doc_ids, batch.position_ids, batch.predicted)

    def useful_flops(self, batch: RowBatch) -> Tensor:
        """Scalar: operations of a training step on a batch that learn something."""
        return self.cost.of(batch.loss_mask, batch.doc_ids, batch.position_ids)

    # -- set-up --------------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Spread the weights over ranks, where the strategy has a mesh of them; Lightning calls this before every run."""
        if self.trainer.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(
                f"weights and rotary frequencies are kept in float32; set trainer.precision to bf16-mixed, got "
                f"{self.trainer.precision}"
            )
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise ValueError("FSDPStrategy can not clip by norm; use speechlm.fsdp2.FSDP2")
        if self.speed.compile and not self._compiled:
            compile_layers(blocks(self.lm))
            self._compiled = True
        mesh = self.device_mesh
        if mesh is None or self._sharded:
            return
        if mesh["tensor_parallel"].size() > 1:
            raise ValueError(
                f"layers are spread by data_parallel_size alone, got tensor_parallel_size {mesh['tensor_parallel'].size()}"
            )
        mixed = self.trainer.precision == "bf16-mixed"
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy()
        for part in [*blocks(self.lm), self.model]:
            fully_shard(part, mesh=data_mesh(mesh), mp_policy=policy)
        if self.ema is not None:
            self.ema.restart(self.model)
        self._sharded = True

    def configure_optimizers(self) -> OptimizerLRScheduler:
        made: Any = self.optimizer_settings.for_stage(self)
        self._trained = [parameter for group in made["optimizer"].param_groups for parameter in group["params"]]
        return cast(OptimizerLRScheduler, made)

    # -- training ------------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Lay speech ids out by the codebook, where there is one and the run is new.

        Raises:
            ValueError: the codebook is not that of the rows' tokenizer, or is none.
        """
        if self.codebook is None or self.trainer.global_step:
            return
        vectors, vocab = read_codebook(self.codebook), self.vocab
        if len(vectors) != vocab.num_speech:
            raise ValueError(
                f"{self.codebook} has {len(vectors)} codes, the vocabulary of the rows {vocab.num_speech}; export the codebook "
                f"of the tokenizer that made the rows"
            )
        start_speech_rows(self.lm, vocab.num_text, vocab.speech_offset, vectors)
        if self.ema is not None:
            self.ema.restart(self.model)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Refuse unknown ids while the batch is in the host's memory, where nothing has to be waited for."""
        if isinstance(batch, RowBatch):
            self._refuse_unknown(batch)
        return batch

    def training_step(self, batch: RowBatch, batch_idx: int) -> Tensor:
        out = self.score(batch)
        tally = Tally.of(batch, out, self.vocab)
        self._step = tally if self._step is None else self._step + tally
        return out.losses.sum() / UNIT

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """The optimizer's step; the last micro-batch's gradient is computed inside, then all are weighted by their ids."""
        assert optimizer_closure is not None

        def closure() -> Any:
            loss = optimizer_closure()
            self._weigh_gradients()
            return loss

        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        optimizer.zero_grad(set_to_none=True)  # Lightning would keep gradients until the next forward pass is done
        if self.ema is not None and not self._skipped_in_a_row:
            self.ema.update(self.model)
        self._log_step()

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm of all ranks' gradients together; without a finite one, leave this update out on all of them."""
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(
                f"gradients are clipped by norm alone, got gradient_clip_algorithm {gradient_clip_algorithm!r}"
            )
        gradients = self._gradients()
        if updates_of(self).left_out_at(self.trainer.global_step):  # a guard said so, and why
            self._count_skipped()
            return
        norm = _whole(torch.nn.utils.get_total_norm(gradients)) if gradients else torch.tensor(torch.nan)
        if self._logs_now:
            self.log("train/grad_norm", norm.to(self.device))
        if not norm.isfinite():
            self._skip(optimizer, float(norm))
            return
        self._skipped_in_a_row = 0
        if gradient_clip_val and norm > gradient_clip_val:
            _scale(gradients, gradient_clip_val / float(norm))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """How many ids of each source were seen."""
        checkpoint["tokens_seen"] = {} if self._seen is None else _by_source(self._seen)
        checkpoint["skipped_updates"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count on from there."""
        self._seen_before, self._seen = checkpoint.get("tokens_seen", {}), None
        self.skipped = checkpoint.get("skipped_updates", 0)

    def on_rewind(self) -> None:
        """The weights are older ones again, and good."""
        self._skipped_in_a_row = 0

    def _weigh_gradients(self) -> None:
        """Gradients of mean losses over micro-batches and ranks become those of the mean over all ids."""
        assert self._step is not None
        self._step = self._step.over_ranks()
        targets = float(self._step.targets)
        if not targets:
            for parameter in self.parameters():
                parameter.grad = None
            return
        _scale(self._gradients(), self.trainer.world_size * self.trainer.accumulate_grad_batches * UNIT / targets)

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._trained if parameter.grad is not None]

    def _skip(self, optimizer: Optimizer, norm: float) -> None:
        """Without gradients AdamW changes neither weights nor moments."""
        optimizer.zero_grad(set_to_none=True)
        self._count_skipped()
        assert self._step is not None
        reason = f"its gradient's norm is {norm}" if self._step.targets else "it has no ids to predict"
        log.warning("the update of step %d was left out: %s", self.global_step, reason)
        if self._skipped_in_a_row >= self.max_skipped:
            raise RuntimeError(
                f"{self._skipped_in_a_row} updates in a row were left out, the last because {reason}; lower the learning rate, "
                f"look at the data, or raise model.init_args.max_skipped"
            )

    def _count_skipped(self) -> None:
        self.skipped += 1
        self._skipped_in_a_row += 1

    def _log_step(self) -> None:
        step, self._step = self._step, None
        assert step is not None
        if self._skipped_in_a_row:
            step.forget_losses()
        self._window = step if self._window is None else self._window + step
        self._seen = (self._restored(step) if self._seen is None else self._seen) + step
        if self._logs_now:
            self.log("train/loss", step.loss, prog_bar=True)
            self.log_dict({f"train/{name}": value for name, value in self._window.losses()})
            self.log_dict({f"data/{name}": value for name, value in self._seen.tokens()})
            self.log("train/skipped_updates", float(self.skipped))
            self._window = None

    @property
    def _logs_now(self) -> bool:
        """Whether somebody takes what is logged in this step: each call of `log` costs a millisecond of a core."""
        step = self.trainer.global_step + 1
        return step % cast(Any, self.trainer).log_every_n_steps == 0 or step == self.trainer.max_steps

    def _restored(self, like: Tally) -> Tally:
        """What the checkpoint had seen of the sources that there still are."""
        seen = Tally(like.sources, like.languages, like.sums.device)
        for number, source in enumerate(seen.sources):
            seen.sums[TOKENS, number] = torch.tensor(self._seen_before.get(source, [0.0, 0.0]))
        return seen

    def _refuse_unknown(self, batch: RowBatch) -> None:
        unknown = (batch.ids < 0) | (batch.ids >= len(self.vocab))
        if unknown.any():
            row, position = unknown.nonzero()[0].tolist()
            source = batch.sources[int(batch.source_ids[row])] if batch.sources else "the data"
            raise ValueError(
                f"id {int(batch.ids[row, position])} at position {position} of row {row} of a batch, from {source}, is outside "
                f"the vocabulary of {len(self.vocab)} ids"
            )
        if self.model.first and (batch.loss_mask & (batch.ids < self.model.first)).any():
            raise ValueError(
                f"the rows predict text, and this model's softmax is over the ids from {self.model.first} on, control and speech "
                f"tokens; let the template's target end with <|end_of_audio|>, or set model.init_args.predict to all"
            )

    # -- validation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: RowBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        name = set_name(self.trainer, dataloader_idx)
        tally = Tally.of(batch, self.score(batch), self.vocab)
        self._validated[name] = self._validated[name] + tally if name in self._validated else tally

    def on_validation_epoch_end(self) -> None:
        for name, tally in self._validated.items():
            total = tally.over_ranks()
            self.log(f"val/{name}/loss", total.loss, prog_bar=True, sync_dist=True)
            self.log_dict({f"val/{name}/{metric}": value for metric, value in total.losses()}, sync_dist=True)
        self._validated = {}


def _by_source(tally: Tally) -> dict[str, list[float]]:
    return dict(zip(tally.sources, tally.sums[TOKENS].tolist(), strict=True))


def _scale(gradients: list[Tensor], factor: float) -> None:
    if gradients:
        torch._foreach_mul_([local(gradient) for gradient in gradients], factor)


def _whole(norm: Any) -> Tensor:
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
