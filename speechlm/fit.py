"""Train any stage: `python -m speechlm.fit --config configs/<stage>/<name>.yaml`.

Lightning's own CLI plus what a run needs around it: a folder of its own, the clock handed to model and data alike, resumption by
the identical command, and starting from weights.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from callbacks.jsonl import JsonlLogger
from speechlm.runs import RunFolder, load_weights
from speechlm.tokens.clock import Clock


class FitCLI(LightningCLI):
    """Lightning's CLI with the run's name and folder, and one section, `clock`, handed to the model and to the data alike."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, required=True, help="name of the run; its folder is <runs_dir>/<name>")
        parser.add_argument("--runs_dir", type=str, default="runs", help="where run folders lie")
        parser.add_argument("--init_from", type=str, default=None, help="start from these weights: .ckpt or .safetensors")
        parser.add_argument("--ckpt_path", type=str, default=None, help="resume this checkpoint instead of the run's own newest")
        parser.add_argument(
            "--allow_config_change", type=bool, default=False, help="resume although model, data or clock have changed"
        )
        parser.add_class_arguments(Clock, "clock")
        parser.link_arguments("clock", "model.init_args.clock", apply_on="parse")
        parser.link_arguments("clock", "data.init_args.clock", apply_on="parse")

    def before_instantiate_classes(self) -> None:
        """Everything the trainer writes goes into the run's folder."""
        self.run = RunFolder(Path(self.config.runs_dir) / self.config.name)
        self.config.trainer.default_root_dir = str(self.run.path)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        trainer.loggers = [JsonlLogger(self.run.path / "metrics.jsonl"), *trainer.loggers]
        return trainer


def main(args: Sequence[str] | None = None) -> None:
    """Parse, build, resume or start, fit. Exits with 2 and the argument's name where the configuration is wrong."""
    cli = build(args)
    run = cli.run
    try:
        resume = run.checkpoint_to_resume(cli.config)
        if cli.config.init_from and not resume:
            load_weights(cli.model, cli.config.init_from)
    except (ValueError, FileNotFoundError) as error:
        cli.parser.error(str(error))
    run.prepare(cli.trainer, cli.parser, cli.config, getattr(cli.model, "vocab", None))
    if resume and run.is_finished(resume, cli.trainer):
        print(f"{run.path} is finished; raise trainer.max_steps to train on, or choose another --name")
        return
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=resume, weights_only=True)


def build(args: Sequence[str] | None = None) -> FitCLI:
    """The model, the data and the trainer of a configuration, nothing run."""
    torch.set_float32_matmul_precision("high")
    return FitCLI(
        run=False,
        args=list(args) if args is not None else None,
        save_config_callback=None,  # written by the run folder, which compares it first
        subclass_mode_model=True,
        subclass_mode_data=True,
        model_class=L.LightningModule,
        datamodule_class=L.LightningDataModule,
        seed_everything_default=0,
        parser_kwargs={"parser_mode": "omegaconf+"},
        trainer_defaults={"use_distributed_sampler": False, "max_epochs": 1, "logger": False},
    )


if __name__ == "__main__":
    sys.exit(main())
