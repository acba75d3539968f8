"""The state of a training as its checkpoint has it: tensors that all ranks share, by name, and what a rank has for itself.

An optimizer's numbers go by the names of the parameters they belong to, so that they fit whatever spreads the parameters.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from speechlm.checkpoint import tree
from speechlm.checkpoint.read import REST

WEIGHTS, OPTIMIZERS = "state_dict", "optimizer_states"


def split(
    contents: dict[str, Any], names: Sequence[Sequence[Sequence[str]]], rank: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Tensors that all ranks share, those of this rank alone, and its plain values as JSON has them.

    Args:
        contents: a checkpoint of Lightning's.
        names: of every parameter, by optimizer and group, in order.
        rank: whose it is.

    Raises:
        ValueError: there is something in it that would need a pickle.
    """
    contents = dict(contents)
    shared: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, value in contents.pop(WEIGHTS).items():
        if isinstance(value, Tensor):
            shared[f"{WEIGHTS}.{name}"] = value
        else:
            values[name] = value
    optimizers = []
    for number, state in enumerate(contents.pop(OPTIMIZERS, [])):
        tensors, rest = named(state, names[number])
        shared |= {f"{OPTIMIZERS}.{number}.{name}": tensor for name, tensor in tensors.items()}
        optimizers.append(rest)
    own: dict[str, Tensor] = {}
    rest = tree.encode({**contents, "extra_state": values, OPTIMIZERS: optimizers}, own, f"{REST}{rank}")
    return shared, own, rest


def named(state: dict[str, Any], names: Sequence[Sequence[str]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state by parameter: tensors as `<parameter>/<what>`, and everything else."""
    of_id: dict[Any, str] = {}
    groups = []
    for group, own in zip(state["param_groups"], names, strict=True):
        of_id.update(zip(group["params"], own, strict=True))
        groups.append({**group, "params": list(own)})
    tensors, values = {}, {}
    for number, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{of_id[number]}/{key}"] = value
            else:
                values[f"{of_id[number]}/{key}"] = value
    others = {key: value for key, value in state.items() if key not in ("state", "param_groups")}
    return tensors, {"param_groups": groups, "values": values, "others": others}


def numbered(tensors: Mapping[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state as torch has it, by the numbers of parameters; the inverse of `named`."""
    order = [name for group in rest["param_groups"] for name in group["params"]]
    number = {name: position for position, name in enumerate(order)}
    state = by_name(tensors, rest)
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in rest["param_groups"]]
    return {
        "state": {number[name]: state["state"][name] for name in order if name in state["state"]},
        "param_groups": groups,
        **rest["others"],
    }


def by_name(tensors: Mapping[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """The same by the names of parameters, as `torch.distributed.checkpoint.state_dict` has it."""
    state: dict[str, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *rest["values"].items()]:
        parameter, _, key = name.rpartition("/")
        state.setdefault(parameter, {})[key] = value
    return {"state": state, "param_groups": rest["param_groups"], **rest["others"]}


def joined(tensors: Mapping[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as Lightning has it; the inverse of `split`."""
    contents = dict(rest)
    weights = {name.removeprefix(f"{WEIGHTS}."): t for name, t in tensors.items() if name.startswith(f"{WEIGHTS}.")}
    contents[WEIGHTS] = {**weights, **contents.pop("extra_state", {})}
    contents[OPTIMIZERS] = [
        numbered(under(tensors, f"{OPTIMIZERS}.{number}."), own) for number, own in enumerate(rest[OPTIMIZERS])
    ]
    return contents


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose name begins with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
