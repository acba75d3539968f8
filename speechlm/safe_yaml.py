"""YAML of strangers: no objects, no files of megabytes, no aliases that unfold to more than the file."""

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2**18
MAX_NODES = 100_000  # once all aliases are followed
MAX_DEPTH = 100


def read_yaml(path: str | Path) -> Any:
    """The values of a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML, or holds objects, or unfolds to more than a config can be.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, more than the {MAX_BYTES} that a config can have")
    try:
        text = path.read_text(encoding="utf-8")
        _check_brackets(text)
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            nodes = _count(node, {}, 0) if node is not None else 0
            if nodes > MAX_NODES:
                raise ValueError(f"its aliases unfold to {nodes} values, more than {MAX_NODES}")
            return loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path} can not be read as plain YAML: {' '.join(str(error).split())[:300]}") from error


def _check_brackets(text: str) -> None:
    """PyYAML takes the square of the depth of brackets: minutes for a file of ten kilobytes."""
    steps = {"[": 1, "{": 1, "]": -1, "}": -1}
    depth = 0
    for letter in text:
        depth = max(0, depth + steps.get(letter, 0))
        if depth > MAX_DEPTH:
            raise ValueError(f"it has more than {MAX_DEPTH} brackets inside of each other")


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Nodes below and with this one, those behind aliases each time they are named."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it has more than {MAX_DEPTH} values inside of each other")
    if id(node) not in known:
        known[id(node)] = MAX_NODES + 1  # an alias to what it is itself a part of has no end
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [child for pair in children for child in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_count(child, known, depth + 1) for child in flat)
    return known[id(node)]
