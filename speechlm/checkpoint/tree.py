"""State of a run as JSON and tensors: what callbacks, loops and schedules remember, without a pickle.

Reading a pickle can run anything, and reading JSON nothing. Values keep their types: tuples stay tuples, keys stay numbers, and
floats come back bit by bit. What has no form here is refused when it is written, while somebody can still mend it.
"""

import base64
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MARK = "$"  # begins the one key of a mapping that stands for something that JSON does not have


def encode(value: Any, tensors: dict[str, Tensor], name: str = "rest") -> Any:
    """A value as JSON has it; tensors in it are put aside under their place, `rest.callbacks.Guard.sums`.

    Args:
        value: plain values, containers, tensors and NumPy arrays.
        tensors: takes the tensors.
        name: where the value stands.

    Raises:
        ValueError: there is something in it that would need a pickle; says where and what.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {"$array": name}
    if isinstance(value, np.generic):
        return encode(value.item(), tensors, name)
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, list | tuple | set | frozenset | Mapping):
        return _encode_container(value, tensors, name)
    if isinstance(value, bool | int | str | float):  # an enumeration, or another kind of number
        plain = next(kind for kind in (bool, int, str, float) if isinstance(value, kind))
        return encode(plain(value), tensors, name)
    raise ValueError(
        f"a checkpoint holds plain values and tensors, got a {type(value).__module__}.{type(value).__qualname__} at {name}; let "
        f"state_dict or on_save_checkpoint give numbers, strings, lists, dicts or tensors"
    )


def _encode_container(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    if isinstance(value, Mapping):
        items = [(key, encode(child, tensors, f"{name}.{key}")) for key, child in value.items()]
        if isinstance(value, Counter):
            return {"$counter": [[encode(key, tensors, name), child] for key, child in items]}
        if all(type(key) is str for key, _ in items) and not any(key.startswith(_MARK) for key, _ in items):
            return dict(items)
        return {"$map": [[encode(key, tensors, f"{name}.key"), child] for key, child in items]}
    children = [encode(child, tensors, f"{name}.{number}") for number, child in enumerate(value)]
    if isinstance(value, list):
        return children
    return {"$tuple" if isinstance(value, tuple) else "$set": children}


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `encode` was given.

    Raises:
        ValueError: it is of no form that `encode` writes, or a tensor is missing.
    """
    if isinstance(value, list):
        return [decode(child, tensors) for child in value]
    if not isinstance(value, dict):
        return value
    mark = next(iter(value), "")
    if len(value) != 1 or not mark.startswith(_MARK):
        return {key: decode(child, tensors) for key, child in value.items()}
    return _decode_marked(mark, value[mark], tensors)


def _decode_marked(mark: str, content: Any, tensors: Mapping[str, Tensor]) -> Any:
    if mark in ("$tensor", "$array"):
        if content not in tensors:
            raise ValueError(f"the tensor {content!r} is missing")
        return tensors[content] if mark == "$tensor" else tensors[content].numpy()
    if mark == "$float":
        return float(content)
    if mark == "$bytes":
        return base64.b64decode(content)
    if mark in ("$map", "$counter"):
        pairs = {decode(key, tensors): decode(child, tensors) for key, child in content}
        return pairs if mark == "$map" else Counter(pairs)
    children = [decode(child, tensors) for child in content] if mark in ("$tuple", "$set") else None
    if children is None:
        raise ValueError(f"{mark!r} is nothing that a checkpoint of this version holds")
    return tuple(children) if mark == "$tuple" else set(children)
