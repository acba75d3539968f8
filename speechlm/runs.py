"""A run folder: what lies in it, where a run goes on from, and whether it still is the same run.

runs/<name>/config.yaml  env.json  vocab.json  metrics.jsonl  checkpoints/  samples/  wandb/
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from speechlm import shards
from speechlm.checkpoint.form import checkpoints_in, is_checkpoint
from speechlm.checkpoint.read import read_rest, read_tensors
from speechlm.checkpoint.state import WEIGHTS
from speechlm.nn.safe_pt import read_pt
from speechlm.nn.weights import fill
from speechlm.safe_yaml import read_yaml

#: Sections that decide what a run computes, and so may not change unnoticed when it is resumed.
GUARDED = ("clock", "model", "data", "seed_everything")
#: Trainer settings of the same kind; the others (steps, devices, logging) may change freely.
GUARDED_TRAINER = ("accumulate_grad_batches", "gradient_clip_algorithm", "gradient_clip_val", "precision")
#: Settings inside the guarded sections that change speed only.
HARMLESS = ("num_workers", "pin_memory", "prefetch_factor")
_ABSENT = "(not set)"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that could be read, and how far its run had come."""

    path: Path
    step: int
    epochs: int  # completed


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint has beside its shards: of a folder what the first rank remembers, of a file of versions before all.

    Raises:
        ValueError: there is no whole checkpoint at `path`, or it holds objects that only unsafe loading would read.
    """
    path = Path(path)
    if _is_own_form(path):
        return read_rest(path)
    if shards.is_sharded(path):
        shards.read_metadata(path)  # so that torch may read it again
    file = path / "meta.pt" if path.is_dir() else path
    try:
        content = read_pt(file, mmap=True)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a checkpoint that can be read safely ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a checkpoint")
    return content


def inspect_checkpoint(path: str | Path) -> Checkpoint:
    """How far a checkpoint is.

    Raises:
        ValueError: it can not be read, or holds weights only.
    """
    content = read_checkpoint(path)
    if "global_step" not in content or "loops" not in content:
        raise ValueError(f"{path} has weights but no state of a training run; start from it with --init_from")
    loop = content["loops"]["fit_loop"]
    epochs = loop["epoch_progress"]["current"]
    # Lightning also counts an epoch that `max_steps` cut short.
    whole = loop["epoch_loop.batch_progress"]["is_last_batch"]
    return Checkpoint(Path(path), content["global_step"], epochs["completed"] if whole else epochs["started"] - 1)


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The checkpoint of a run folder that came furthest, or None; one that can not be read is passed over with a warning."""
    found = []
    for path in [*checkpoints_in(run / "checkpoints"), *run.glob("hpc_ckpt_*.ckpt")]:
        try:
            found.append(inspect_checkpoint(path))
        except ValueError as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
    return max(found, key=lambda checkpoint: checkpoint.step, default=None)


def config_changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that decide what a run computes and differ: `{"model.init_args.lr": (0.1, 0.2)}`."""
    old, new = dict(_guarded(before)), dict(_guarded(now))
    keys = sorted(old.keys() | new.keys())
    pairs = {key: (old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def forbidden_changes(changes: dict[str, tuple[Any, Any]], allowed: bool | list[str]) -> dict[str, tuple[Any, Any]]:
    """Those of `changes` that `allowed` does not name; a name covers everything below it, True covers everything."""
    if isinstance(allowed, bool):
        return {} if allowed else changes
    return {key: pair for key, pair in changes.items() if not any(_covers(name, key) for name in allowed)}


def read_config(run: Path) -> dict[str, Any] | None:
    """The config a run folder was started with, or None.

    Raises:
        ValueError: the file is no YAML mapping.
    """
    path = run / "config.yaml"
    if not path.exists():
        return None
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a config: expected sections, got {type(config).__name__}")
    return config


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill a model from a checkpoint (.ckpt), a .safetensors file, or a folder of safetensors; all of it or nothing.

    Raises:
        ValueError: the weights do not fit; the message lists what is missing, left over or of another shape.
    """
    fill(model, read_weights(Path(path)), path, "the model")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, a .safetensors file, or a folder of them, by name.

    Raises:
        ValueError: there are none, or they are damaged.
    """
    if _is_own_form(path):
        return read_tensors(path, f"{WEIGHTS}.")
    if shards.is_sharded(path):
        return shards.read_shards(path)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{path} has no .safetensors file to start from")
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    if path.suffix == ".safetensors":
        return load_file(path)
    content = read_checkpoint(path)
    return content.get("state_dict", content)


def _is_own_form(path: Path) -> bool:
    """A folder of a step in which nothing says that it is of another form was never finished, and is read as damaged."""
    return is_checkpoint(path) or (path.is_dir() and path.suffix == ".ckpt" and not shards.is_sharded(path))


def _guarded(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    trainer = config.get("trainer") or {}
    picked = {name: config.get(name) for name in GUARDED}
    picked["trainer"] = {name: trainer.get(name) for name in GUARDED_TRAINER}
    for key, value in leaves(picked):
        if key.rsplit(".", 1)[-1] not in HARMLESS:
            yield key, value


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested sections; an empty section is a value of its own."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not children:
        yield key, value
    for name, child in children:
        yield from leaves(child, f"{key}.{name}" if key else str(name))


def _covers(name: str, key: str) -> bool:
    return key == name or key.startswith(name + ".")
