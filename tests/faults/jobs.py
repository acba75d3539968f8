"""What the ranks of a job run, by name."""

import importlib
import os
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from speechlm import fit as fit_verb
from speechlm.tokens.clock import Clock
from tests.dummies import DummyData, DummyStage, Stream
from tests.faults import injections


def fit(args: list[str], only_on: dict[str, list[str]] | None = None) -> None:
    """Train as the command line would, with more arguments on some ranks."""
    fit_verb.main([*args, *(only_on or {}).get(os.environ.get("RANK", "0"), [])])


def train(
    folder: str,
    callbacks: list[tuple[str, dict[str, Any]]],
    ranks: int,
    steps: int,
    slow_data: tuple[int, float] | None = None,
) -> None:
    """The same stage and data with given callbacks, without the command line, whose parsing takes most of a short run."""
    L.seed_everything(0)
    made = []
    for path, settings in callbacks:
        module, _, name = path.rpartition(".")
        made.append(getattr(importlib.import_module(module), name)(**settings))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_steps=steps,
        default_root_dir=folder,
        callbacks=made,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        logger=False,
    )
    stage = DummyStage(Clock(), dropout=0.0)
    data = DummyData(Clock()) if slow_data is None else injections.SlowData(Clock(), *slow_data)
    trainer.fit(stage, datamodule=data)
    if not trainer.global_rank:
        torch.save(stage.state_dict(), f"{folder}/end.pt")


def bare_fit(
    folder: str,
    steps: int = 6,
    faults: list[Any] | None = None,
    resume: bool = False,
    lr: float = 0.1,
    lr_of_rank: dict[str, float] | None = None,
    **settings: Any,
) -> None:
    """The same stage and data under Lightning alone, with its defaults: what users start from."""
    L.seed_everything(0)
    keep = ModelCheckpoint(
        f"{folder}/checkpoints", every_n_train_steps=2, save_top_k=-1, filename="{step}", save_last=True
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=folder,
        callbacks=[keep, *(getattr(injections, name)(**arguments) for name, arguments in faults or [])],
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        logger=False,
        **settings,
    )
    stage = DummyStage(Clock(), lr=(lr_of_rank or {}).get(os.environ.get("RANK", "0"), lr))
    trainer.fit(stage, DataLoader(Stream(1000), batch_size=None), ckpt_path="last" if resume else None)
    trainer.save_checkpoint(f"{folder}/end.ckpt")
