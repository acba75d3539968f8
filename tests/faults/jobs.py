"""What the ranks of a job run, by name."""

import importlib
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from callbacks.finite_guard import FiniteGuard
from callbacks.recompute_check import RecomputeCheck
from callbacks.rewind import Rewind
from callbacks.spike_guard import SpikeGuard
from callbacks.stragglers import StragglerReport
from speechlm import fit as fit_verb
from speechlm.fsdp2 import FSDP2
from speechlm.tokens.clock import Clock
from tests.dummies import DummyData, DummyStage, Stream
from tests.faults import injections
from tests.kill_job import train_killed  # noqa: F401 - found by name
from tests.tiny_lm import Rows, random_rows, tiny_stage


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


def train_lm(folder: str, guarded: bool, poisoned: list[int]) -> None:
    """A tiny language model under FSDP2, with and without guards; rank 1's loss is NaN in some micro-batches."""
    guards = [
        FiniteGuard(),
        SpikeGuard(),
        Rewind(after=2, every=1, margin=0),
        RecomputeCheck(every=1),
        StragglerReport(2),
    ]
    stage = tiny_stage(Path(folder) / os.environ["RANK"], ema_decay=0.5)
    poison = injections.PoisonedModel(poisoned, rank=1)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=FSDP2(process_group_backend="gloo"),
        max_steps=6,
        callbacks=[poison, *(guards if guarded else [])],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(stage, datamodule=Rows([random_rows(2, seed=seed) for seed in range(12)]))
    whole = {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in stage.state_dict().items()}
    if not trainer.global_rank:
        torch.save({"state": whole, "checked": guards[3].checked, "rewound": guards[2].rewound_at}, f"{folder}/end.pt")  # type: ignore[attr-defined]


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
