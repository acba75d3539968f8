"""What a run was started with, kept in its folder: config, origin and vocabulary."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
import yaml

from callbacks.wandb_log import WandbLog
from speechlm.files import write_text_atomic
from speechlm.provenance import code_diff, provenance, redact
from speechlm.runs import leaves
from speechlm.tokens.vocab import Vocab

#: Of env.json, for the config of a W&B run.
ORIGIN = ("started", "command", "git", "hardware", "world_size", "num_nodes")


class RunRecord(L.Callback):
    """Writes `config.yaml`, `env.json` and `vocab.json`, and puts the vocabulary's hash into every checkpoint.

    `env.json` describes the latest start and lists the ones before it under `starts`; `code.diff` is what the code differed by
    from its commit. W&B, where it logs, gets all of them, and config and origin as the config of its run.

    Args:
        folder: the run folder.
        config: the resolved config, as plain values.
        command: the command line, program first; the process's own where None.
        notes: what else to say about this start, such as the checkpoint it resumes from.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        command: list[str] | None = None,
        notes: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.config, self.command, self.notes = folder, config, command, notes or {}
        self._vocab: Vocab | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the files, on the first rank, once all ranks are found to have the same config."""
        self._require_same_config()
        self._vocab = getattr(pl_module, "vocab", None)
        if not trainer.is_global_zero:
            return
        self._write_vocab()
        write_text_atomic(self.folder / "config.yaml", yaml.safe_dump(redact(self.config), sort_keys=False))
        environment = self._environment(trainer)
        write_text_atomic(self.folder / "env.json", json.dumps(environment, indent=2) + "\n")
        write_text_atomic(self.folder / "code.diff", code_diff(Path(__file__).resolve().parent))
        for logger in trainer.loggers:
            logger.log_hyperparams(redact(self.config))
            if isinstance(logger, WandbLog):
                logger.log_hyperparams({"origin": {key: environment[key] for key in ORIGIN}})
                for name in ("config.yaml", "env.json", "code.diff"):
                    logger.keep(self.folder / name)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """The vocabulary travels with the weights."""
        if self._vocab is not None:
            checkpoint["vocab_hash"] = self._vocab.hash

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Weights of another vocabulary are refused."""
        if self._vocab is not None and "vocab_hash" in checkpoint:
            self._vocab.require(checkpoint["vocab_hash"], "the checkpoint")

    def _require_same_config(self) -> None:
        """Refuse ranks that were started with different settings, which would train as if nothing were wrong.

        Raises:
            ValueError: naming the ranks and the settings.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        own = dict(leaves(self.config))
        configs: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(configs, {key: repr(redact(value, key)) for key, value in own.items()})
        first = configs[0]
        for rank, other in enumerate(configs):
            keys = sorted(k for k in first.keys() | other.keys() if first.get(k) != other.get(k))
            if keys:
                shown = "; ".join(
                    f"{key}: {first.get(key)} on rank 0, {other.get(key)} on rank {rank}" for key in keys[:5]
                )
                raise ValueError(
                    f"the ranks of this run have different configs: {shown}. Start all of them with one command"
                )

    def _write_vocab(self) -> None:
        path = self.folder / "vocab.json"
        if self._vocab is None:
            return
        if path.exists():
            self._vocab.require(Vocab.load(path).hash, str(path))
        self._vocab.save(path)

    def _environment(self, trainer: L.Trainer) -> dict[str, Any]:
        path = self.folder / "env.json"
        before = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.exists() else []
        now = {**provenance(self.command), "world_size": trainer.world_size, "num_nodes": trainer.num_nodes}
        start = {"started": now["started"], "command": now["command"], "git": now["git"], **redact(self.notes)}
        return {**now, "starts": [*before, start]}
