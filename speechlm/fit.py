"""Train any stage: `python -m speechlm.fit --config configs/<stage>/<name>.yaml [--trainer.max_steps 10 …]`.

The identical command resumes. `--init_from` starts a new run from weights, `--ckpt_path` goes on with a run of another folder.
"""

import sys
from pathlib import Path
from typing import Any, NoReturn, cast

import lightning as L
import yaml
from jsonargparse.typing import restricted_string_type
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from callbacks.checkpoint import CheckpointIO, Checkpoints
from callbacks.jsonl import JsonlLogger
from callbacks.preemption import Preemption
from callbacks.progress import PlainProgress, TerminalProgress
from callbacks.run_record import RunRecord
from speechlm import runs
from speechlm.checkpoint.form import Damaged, is_checkpoint
from speechlm.checkpoint.read import verify
from speechlm.hidden_secrets import hide_secrets
from speechlm.provenance import redact
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import OtherVocab

RunName = restricted_string_type(
    "RunName",
    r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*$",
    docstring="letters, digits, '_', '.', '-', and '/' between them",
)


class FitCLI(LightningCLI):
    """Lightning's own CLI plus a run folder, one clock handed to the model and to the data, and resuming by default."""

    resume: runs.Checkpoint | None = None

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's parser; Lightning calls what jsonargparse names otherwise since 4.49."""
        parser = super().init_parser(**kwargs)
        cast(Any, parser).instantiate_classes = parser.instantiate
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The sections that Lightning does not have."""
        parser.add_argument("--name", type=RunName, required=True, help="name of the run; its folder is runs_dir/name")
        parser.add_argument("--runs_dir", type=str, default="runs", help="where run folders lie")
        parser.add_argument(
            "--init_from", type=str | None, help="weights to start from: .ckpt, .safetensors or a folder of them"
        )
        parser.add_argument(
            "--ckpt_path", type=str | None, help="checkpoint of another run to go on with, optimizer and all"
        )
        parser.add_argument(
            "--allow_config_change",
            type=bool | list[str],
            default=False,
            help="resume although settings changed: true, or the keys that may, such as [model.init_args.optimizer]",
        )
        parser.add_class_arguments(Clock, "clock")
        parser.link_arguments("clock", "model.init_args.clock")
        parser.link_arguments("clock", "data.init_args.clock")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.link_arguments(
            ("runs_dir", "name"), "checkpoint.folder", lambda root, name: f"{root}/{name}/checkpoints"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Arguments handed to `main` count alone, whatever the process was started with."""
        self.command = sys.argv if args is None else ["speechlm.fit", *map(str, args)]
        self.config = parser.parse_args(None if args is None else list(map(str, args)))

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.runs_dir) / self.config.name

    def before_instantiate_classes(self) -> None:
        """Everything that can be refused before weights are loaded."""
        for logger in _as_list(self.config.trainer.logger):
            if logger.get("class_path", "").endswith("WandbLog") and logger.init_args.save_dir == ".":
                logger.init_args.save_dir = str(self.folder)
                logger.init_args.name = logger.init_args.name or str(self.config.name)
        self.plain_config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        for argument in ("init_from", "ckpt_path"):
            path = self.config[argument]
            if path and not Path(path).exists():
                self.refuse(f"argument --{argument}: no file or folder at {path}")
        try:
            self.resume = self._where_to_resume()
            self._refuse_changes()
        except ValueError as error:
            self.refuse(str(error))

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; what a constructor refuses is the user's to mend, so it ends with exit code 2."""
        try:
            super().instantiate_classes()
        except (ValueError, OSError) as error:
            self.refuse_naming_argument(error)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A trainer that logs, saves and shows its progress in the run's own folder."""
        trainer = self.config_init.trainer
        trainer.default_root_dir = trainer.default_root_dir or str(self.folder)
        trainer.plugins = [*_as_list(trainer.plugins), CheckpointIO(self.folder / "checkpoints")]
        trainer.logger = [JsonlLogger(str(self.folder)), *_as_list(trainer.logger)]
        trainer.callbacks = _as_list(trainer.callbacks)
        if not any(isinstance(callback, Preemption) for callback in trainer.callbacks):
            trainer.callbacks.append(Preemption())
        if trainer.enable_progress_bar is not False:
            trainer.callbacks.append(TerminalProgress() if sys.stdout.isatty() else PlainProgress())
        if not trainer.fast_dev_run:
            notes = {"resumed_from": str(self.resume.path) if self.resume else None, "changes": self.changes}
            trainer.callbacks.append(RunRecord(self.folder, self.plain_config, self.command, notes))
        return super().instantiate_trainer(**kwargs)

    def fit(self) -> None:
        """Train, from where the run left off, from given weights, or from the beginning."""
        if self.resume is None and self.config.init_from:
            try:
                runs.load_weights(self.model, self.config.init_from)
            except ValueError as error:
                self.refuse(f"argument --init_from: {error}")
        for callback in cast(Any, self.trainer).callbacks:
            getattr(callback, "before_launch", lambda: None)()
        path = self.resume.path if self.resume else None
        try:
            self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=path, weights_only=True)
        except FileNotFoundError as error:
            self.refuse_naming_argument(error)
        except (OtherVocab, Damaged) as error:
            self.refuse(str(error))

    def finished(self) -> str:
        """Why there is nothing left to do, or an empty string."""
        if self.resume is None:
            return ""
        max_steps, max_epochs = self.config.trainer.max_steps, self.config.trainer.max_epochs
        if 0 <= max_steps <= self.resume.step:
            return f"step {self.resume.step} of trainer.max_steps {max_steps}"
        if max_epochs is not None and 0 <= max_epochs <= self.resume.epochs:
            return f"epoch {self.resume.epochs} of trainer.max_epochs {max_epochs}"
        return ""

    def verified(self) -> bool:
        """Whether the checkpoint of a finished run is as it was written; every process looks, so that all say the same."""
        assert self.resume is not None
        try:
            if is_checkpoint(self.resume.path):
                verify(self.resume.path)
        except Damaged:
            return False  # training goes on from the one before, and says so
        return True

    def refuse(self, message: str) -> NoReturn:
        """End with exit code 2 and a message."""
        self.parser.error(message)
        raise AssertionError("the parser's error exits")

    def refuse_naming_argument(self, error: Exception) -> NoReturn:
        """`refuse`, with the argument whose value the error speaks of; an error that speaks of none is raised as it is."""
        message = _reason(str(error))
        leaves = runs.leaves(self.plain_config)
        named = [(key, value) for key, value in leaves if isinstance(value, str) and not key.endswith("class_path")]
        fitting = [
            key for key, value in sorted(named, key=lambda pair: len(pair[1])) if len(value) > 2 and value in message
        ]
        absent = [f"{key} ({value})" for key, value in named if "/" in value and not Path(value).exists()]
        if not fitting and isinstance(error, OSError):
            raise error
        if not fitting and _is_about_files(error):  # transformers does not say which name it could not find
            fitting = [key for key in absent if key.startswith("model.")]
        self.refuse((f"argument {fitting[-1]}: " if fitting else "") + message)

    def _where_to_resume(self) -> runs.Checkpoint | None:
        """The run's own newest checkpoint, or `ckpt_path` where that is further."""
        own = runs.newest_checkpoint(self.folder)
        if not self.config.ckpt_path:
            return own
        given = runs.inspect_checkpoint(self.config.ckpt_path)
        if own is None or given.step > own.step or given.path.resolve() == own.path.resolve():
            return given
        if given.path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(
                f"argument --ckpt_path: {given.path} is behind {own.path} of the same run; give the branch that starts "
                f"there another --name"
            )
        return own

    def _refuse_changes(self) -> None:
        """A run goes on with what it began with, unless it was said that it may not."""
        self.changes: dict[str, Any] = {}
        if self.resume is None:
            return
        before = runs.read_config(self.resume.path.parent.parent)
        if before is None:
            return
        self.changes = runs.config_changes(before, redact(self.plain_config))
        forbidden = runs.forbidden_changes(self.changes, self.config.allow_config_change)
        if forbidden:
            lines = "".join(f"\n  {key}: {old!r} -> {new!r}" for key, (old, new) in forbidden.items())
            raise ValueError(
                f"{self.resume.path} can not be resumed with another config:{lines}\nchoose another --name, or allow it with "
                f"--allow_config_change '[{', '.join(forbidden)}]' (or true)"
            )


class ParsedCLI(FitCLI):
    """The CLI up to the point where weights would be loaded: what a config says, and what is refused of it."""

    def instantiate_classes(self) -> None:
        """Nothing is built."""


def build(args: ArgsType = None, form: type[FitCLI] | None = None) -> FitCLI:
    """The model, the data and the trainer of a configuration, or what `form` makes of it; nothing is run."""
    return (form or FitCLI)(
        model_class=L.LightningModule,
        datamodule_class=L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,  # the run record writes it
        seed_everything_default=0,
        parser_kwargs={
            "parser_mode": "omegaconf+",
            "prog": "python -m speechlm.fit",
            "usage": "%(prog)s --config FILE [--config FILE ...] [--section.key value ...]",  # not eighty options at every error
        },
        auto_configure_optimizers=False,  # a stage names its own
        trainer_defaults={"use_distributed_sampler": False, "max_epochs": 1, "logger": False},
        run=False,
        args=args,
    )


def main(args: ArgsType = None) -> None:
    """Parse, build, and train from where the run left off."""
    hide_secrets()
    cli = build(args)
    finished = cli.finished()
    if finished and cli.verified():
        rank_zero_info(f"{cli.folder} is finished ({finished}); raise that to train on, or choose another --name")
        return
    cli.fit()


def _reason(message: str) -> str:
    """What a constructor said, out of what the parser wraps around it: the types it tried, and every argument there is."""
    tried = message.split("\nGiven value type")[0].split("Errors:\n")[-1]
    lines = [line for line in tried.splitlines() if not line.endswith("Expected a <class 'NoneType'>")]
    return "\n".join(lines).strip().removeprefix("- ")


def _is_about_files(error: BaseException | None) -> bool:
    """Whether an error came of a file or an address that could not be read."""
    return error is not None and (isinstance(error, OSError) or _is_about_files(error.__cause__ or error.__context__))


def _as_list(value: Any) -> list[Any]:
    """One, several or none (also `logger: false`) as a list."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


if __name__ == "__main__":
    main()
