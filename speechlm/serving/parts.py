"""A trained stage as a folder that stands alone: what its config names lies in it, weights are safetensors.

config.yaml   sections `clock` and `model`, classes of this package only; `bundle:x` is the file or folder x in this one
weights.safetensors
files/        what the config named by path
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from safetensors.torch import save

from speechlm import runs
from speechlm.files import write_bytes_atomic, write_text_atomic
from speechlm.load import build_stage, load_stage
from speechlm.safe_yaml import read_yaml
from speechlm.serving.released_parts import released_config

HERE = "bundle:"
#: Arguments that only training needs, and a flow decoder's vocoder, which is a part of its own.
LEFT_OUT = ("source", "distillation", "vocoder", "optimizer", "letters")


def write_stage(run: str | Path, folder: Path, part: str) -> L.LightningModule:
    """Copy a run's stage, or released weights, into a folder; the stage.

    Args:
        run: run folder, or what `released_config` knows.
        folder: to write.
        part: `tokenizer`, `decoder` or `vocoder`.

    Raises:
        ValueError: it is no run folder, or has no checkpoint yet, and no released weights either.
    """
    released = released_config(part, Path(run))
    if released is not None:
        return store(build_stage(released), released, folder)
    stage = load_stage(run)
    config = runs.read_config(Path(run))
    assert config is not None, "load_stage has read it"
    arguments = {name: value for name, value in config["model"]["init_args"].items() if name not in LEFT_OUT}
    if config["model"]["init_args"].get("letters"):
        arguments["letters"] = config["model"]["init_args"]["letters"]
    model = {"class_path": config["model"]["class_path"], "init_args": arguments}
    return store(stage, {"clock": config["clock"], "model": model}, folder)


def store(stage: L.LightningModule, config: dict[str, Any], folder: Path) -> L.LightningModule:
    """Write a stage and the config that builds it."""
    (folder / "files").mkdir(parents=True)
    taken: dict[str, str] = {}
    config = _each_string(config, lambda text: _copied(text, folder, taken))
    write_text_atomic(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in stage.state_dict().items()}
    write_bytes_atomic(folder / "weights.safetensors", save(state))
    return stage


def read_stage(folder: Path) -> L.LightningModule:
    """The stage of a folder, in eval mode.

    Raises:
        ValueError: the config names what is not of this package, or the weights do not fit.
    """
    config = read_yaml(folder / "config.yaml")
    if not isinstance(config, dict) or set(config) != {"clock", "model"}:
        raise ValueError(f"{folder / 'config.yaml'} has the sections clock and model, and no others")
    _require_ours(config, folder)
    stage = build_stage(_each_string(config, lambda text: _resolved(text, folder)))
    runs.load_weights(stage, folder / "weights.safetensors")
    return stage.eval()


def _copied(text: str, folder: Path, taken: dict[str, str]) -> str:
    """A path's file or folder, copied, under the name it has from now on; any other string as it is."""
    source = Path(text)
    if not text or len(text) > 500 or not source.exists():
        return text
    if text not in taken:
        taken[text] = f"files/{len(taken)}_{source.name}"
        target = folder / taken[text]
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    return HERE + taken[text]


def _resolved(text: str, folder: Path) -> str:
    if not text.startswith(HERE):
        return text
    path = (folder / text.removeprefix(HERE)).resolve()
    if folder.resolve() not in path.parents:
        raise ValueError(f"{text} in {folder / 'config.yaml'} leads out of the folder")
    return str(path)


def _require_ours(config: Any, folder: Path) -> None:
    if isinstance(config, dict):
        name = config.get("class_path", "speechlm.")
        if not isinstance(name, str) or not name.startswith("speechlm."):
            raise ValueError(f"{folder / 'config.yaml'} names {name!r}; only classes of speechlm are loaded")
    if isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            _require_ours(value, folder)


def _each_string(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: one if key == "class_path" else _each_string(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_each_string(one, change) for one in value]
    return change(value) if isinstance(value, str) else value
