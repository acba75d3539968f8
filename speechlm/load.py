"""A trained stage from its run folder."""

from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ArgumentParser

from speechlm import runs
from speechlm.nn.generator import Generator
from speechlm.tokens.clock import Clock


def load_stage(run: str | Path, checkpoint: str | Path | None = None) -> L.LightningModule:
    """Build the stage a run's config.yaml names and load its newest checkpoint, in eval mode on the CPU.

    Args:
        run: run folder.
        checkpoint: another checkpoint of the same shape.

    Raises:
        ValueError: the folder holds no run, or no checkpoint that fits.
    """
    config = runs.read_config(Path(run))
    if config is None:
        raise ValueError(f"{run} is no run folder: it has no config.yaml")
    stage = build_stage(_with_own_vocabulary(config, Path(run)))
    if checkpoint is None:
        newest = runs.newest_checkpoint(Path(run))
        if newest is None:
            raise ValueError(f"{run} has no checkpoint yet")
        checkpoint = newest.path
    runs.load_weights(stage, checkpoint)
    return stage.eval()


def _with_own_vocabulary(config: dict[str, Any], run: Path) -> dict[str, Any]:
    """The config with the vocabulary that a run keeps, so that the rows it was trained on may be elsewhere by now, or gone."""
    arguments = config["model"].get("init_args", {})
    if not isinstance(arguments.get("vocab"), str) or not (run / "vocab.json").is_file():
        return config
    return {**config, "model": {**config["model"], "init_args": {**arguments, "vocab": str(run / "vocab.json")}}}


def build_stage(config: dict[str, Any]) -> L.LightningModule:
    """The stage that the sections `clock` and `model` of a config name, without trained weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Clock, "clock")
    parser.add_subclass_arguments(L.LightningModule, "model")
    parser.link_arguments("clock", "model.init_args.clock")
    parsed = parser.parse_object({"clock": config["clock"], "model": config["model"]})
    return parser.instantiate(parsed).model


def load_vocoder(run: str, checkpoint: str | None = None) -> Generator:
    """The network of a vocoder's run, for a flow decoder to be heard through.

    Args:
        run: run folder.
        checkpoint: another checkpoint of the same shape.

    Raises:
        ValueError: the folder holds no run of a vocoder.
    """
    generator = getattr(load_stage(run, checkpoint), "generator", None)
    if not isinstance(generator, Generator):
        raise ValueError(f"{run} is no run of a vocoder")
    return generator
