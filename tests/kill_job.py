"""What the processes of tests/kills.py run: a tiny language model that notes what it sees, and is killed at a given step."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from callbacks.checkpoint import CheckpointIO, Checkpoints
from callbacks.preemption import Preemption
from datamodules.rows import RowsDataModule, RowSource
from speechlm import runs
from speechlm.batch import RowBatch
from speechlm.fsdp2 import FSDP2
from speechlm.stages.speech_lm import SpeechLM
from speechlm.tokens.clock import Clock

ASSETS = Path(__file__).parents[1] / "assets"
STEP_ROWS = 4
POINTS = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")


class Noisy(SpeechLM):
    """Draws random numbers at every step, as dropout would; a run that resumes with others ends elsewhere."""

    noise = 0.0

    def training_step(self, batch: RowBatch, batch_idx: int) -> Tensor:
        """The loss, times a random number near one."""
        return super().training_step(batch, batch_idx) * (1 + self.noise * torch.rand(()))


class Notes(L.Callback):
    """A line per step and rank: the rows it saw, and the loss of all; a kill takes no line that was written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Behind those of earlier starts."""
        self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: RowBatch, *_: Any) -> None:
        """What this step was."""
        loss = float(trainer.callback_metrics["train/loss"])
        rows = [int(row.sum()) * 1009 + int(row[:7].sum()) for row in batch.ids]
        note = {"step": trainer.global_step, "rank": trainer.global_rank, "rows": rows, "loss": loss}
        os.write(self.file, (json.dumps(note) + "\n").encode())


class Kill(L.Callback):
    """SIGKILL to this very process, in the n-th step since it was started."""

    def __init__(self, steps: int, point: str) -> None:
        self.left = steps
        setattr(self, point, self._strike)

    def _strike(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def train_killed(
    folder: str,
    ranks: int,
    steps: int,
    noise: float,
    kill: tuple[int, int, str] | None,
    told: dict[str, int] | None = None,
) -> None:
    """Train from the newest checkpoint to the end, or to the kill: (rank, steps from now, point)."""
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    run = Path(folder)
    rank = int(os.environ.get("RANK", "0"))
    strikes = [Kill(kill[1], kill[2])] if kill is not None and kill[0] == rank else []
    newest = runs.newest_checkpoint(run)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=FSDP2(process_group_backend="gloo") if ranks > 1 else "auto",
        max_steps=steps,
        default_root_dir=run,
        callbacks=[
            Notes(run / f"notes-{rank}.jsonl"),
            *strikes,
            *([Tell(**told)] if told else []),
            Preemption(),
            Checkpoints(str(run / "checkpoints"), every_n_steps=2, keep=2),
        ],
        plugins=[CheckpointIO(run / "checkpoints")],
        limit_val_batches=1,
        val_check_interval=5,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        logger=False,
    )  # fmt: skip
    stage = Noisy(
        Clock(), str(ASSETS / "tiny-rows/vocab.json"), str(ASSETS / "tiny-lm/qwen2"), from_scratch=True, ema_decay=0.9
    )
    stage.noise = noise
    data = RowsDataModule(
        Clock(),
        train=[
            RowSource(str(ASSETS / "tiny-rows/text_train"), weight=0.5),
            RowSource(str(ASSETS / "tiny-rows/interleaved_train"), weight=0.5),
        ],
        val={"text": str(ASSETS / "tiny-rows/text_heldout")},
        batch_rows=STEP_ROWS // ranks,
        step_rows=STEP_ROWS,
    )
    trainer.fit(stage, datamodule=data, ckpt_path=newest.path if newest else None, weights_only=True)


class Tell(L.Callback):
    """Sends this process a signal, as Slurm would, in the middle of a step."""

    def __init__(self, rank: int, step: int, number: int) -> None:
        self.rank, self.step, self.number = rank, step, number

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        """Once."""
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)
