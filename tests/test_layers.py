"""The arrows of the house: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("speechlm", "datamodules", "callbacks")

#: What a folder must not import; the first folder that fits a file counts.
FORBIDDEN = {
    "speechlm/tokens": (
        "lightning",
        "lhotse",
        "transformers",
        "datamodules",
        "callbacks",
        "speechlm.nn",
        "speechlm.stages",
    ),
    "speechlm/nn": ("lightning", "lhotse", "jsonargparse", "omegaconf", "datamodules", "callbacks", "speechlm.stages"),
    "speechlm/stages": ("datamodules", "callbacks", "lhotse", "speechlm.evals"),
    "speechlm/evals": ("lightning", "lhotse", "callbacks"),
    "speechlm/checkpoint": (
        "lightning",
        "lhotse",
        "transformers",
        "datamodules",
        "callbacks",
        "speechlm.nn",
        "speechlm.stages",
    ),
    "speechlm/cluster": ("torch", "lightning", "lhotse", "datamodules", "callbacks", "speechlm.nn", "speechlm.stages"),
    "speechlm/checks": ("lightning", "callbacks", "speechlm.stages", "speechlm.cluster"),
    "speechlm/engines": ("lightning", "lhotse", "datamodules", "callbacks", "speechlm.stages", "speechlm.serving"),
    "speechlm/serving": ("lhotse", "datamodules", "callbacks"),
    "speechlm/batch.py": ("lightning", "lhotse", "speechlm"),
    "datamodules": ("speechlm.stages", "speechlm.nn", "callbacks"),
    "callbacks": ("speechlm.stages", "datamodules"),
}


def imports(source: str) -> set[str]:
    """Names of the modules a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def wrong_arrows(root: Path) -> list[str]:
    """Every import that points the wrong way, as "file imports module"."""
    wrong = []
    for file in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        name = file.relative_to(root).as_posix()
        for folder, modules in FORBIDDEN.items():
            if name.startswith(folder):
                named = imports(file.read_text(encoding="utf-8"))
                wrong += [
                    f"{name} imports {n}" for n in sorted(named) for m in modules if n == m or n.startswith(m + ".")
                ]
    return wrong


def test_no_import_points_the_wrong_way():
    assert wrong_arrows(ROOT) == []


@pytest.mark.parametrize(
    "line", ["import lightning as L", "from lhotse.cut import Cut", "def f():\n    import datamodules.audio"]
)
def test_a_wrong_import_is_found_wherever_it_hides(tmp_path: Path, line: str):
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "speechlm" / "nn").mkdir()
    (tmp_path / "speechlm" / "nn" / "masks.py").write_text(line + "\n")
    assert len(wrong_arrows(tmp_path)) == 1


def test_a_web_framework_is_known_to_the_web_folder_alone():
    frameworks = {"fastapi", "starlette", "uvicorn", "pydantic"}
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    users = [
        path for path in files if {n.split(".")[0] for n in imports(path.read_text(encoding="utf-8"))} & frameworks
    ]
    assert users and {path.parent for path in users} == {ROOT / "speechlm" / "serving" / "web"}


def test_init_files_are_empty():
    assert [
        str(p) for package in PACKAGES for p in (ROOT / package).rglob("__init__.py") if p.read_text().strip()
    ] == []


def test_every_module_says_what_it_is():
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]
    assert [str(p) for p in files if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))] == []
