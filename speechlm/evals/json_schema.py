"""The JSON Schema of a dataclass, for whoever reads its JSON with other tools."""

import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def schema_of(cls: type, title: str = "") -> dict[str, Any]:
    """Draft 2020-12: every field required, no other allowed, the docstring as description."""
    return {"$schema": DRAFT, "title": title or cls.__name__, **_of(cls)}


def _of(kind: Any) -> dict[str, Any]:
    origin, inner = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _of_dataclass(kind)
    if kind is Any:
        return {}
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(choice) for choice in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(inner[1])}
    if origin is list:
        return {"type": "array", "items": _of(inner[0])}
    raise TypeError(f"there is no JSON Schema for {kind}")


def _of_dataclass(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    return {
        "type": "object",
        "description": (kind.__doc__ or "").strip(),
        "properties": {name: _of(hints[name]) for name in names},
        "required": names,
        "additionalProperties": False,
    }
