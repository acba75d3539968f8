"""The verbs: every module that `python -m` runs, found by their last lines, so that a new one is among them."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Run by a verb, in processes of its own, whose output the verb reads.
PARTS = {"speechlm.checks.talk"}


def parsed(module: str) -> ast.Module:
    """The code of a module."""
    return ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))


def _is_run(module: str) -> bool:
    return any(isinstance(one, ast.If) and "__main__" in ast.unparse(one.test) for one in parsed(module).body)


VERBS = sorted(
    module
    for package in ("speechlm", "datamodules", "callbacks")
    for path in (ROOT / package).rglob("*.py")
    if (module := ".".join(path.relative_to(ROOT).with_suffix("").parts)) not in PARTS and _is_run(module)
)
