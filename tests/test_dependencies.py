"""The floors of our dependencies leave out every version with a hole that is known to reach us."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"

#: Package -> ("below" the first version without the hole, or one bad version, and what it is). What a floor has to leave out.
HOLES: dict[str, list[tuple[str, str]]] = {
    "torch": [
        ("<2.6", "CVE-2025-32434: torch.load runs code in spite of weights_only"),
        ("<2.10", "CVE-2026-24747: weights_only can be made to corrupt memory"),
    ],
    "lightning": [
        ("==2.6.2", "GHSA-w37p-236h-pfx3: a stealer of credentials, at import"),
        ("==2.6.3", "GHSA-w37p-236h-pfx3: a stealer of credentials, at import"),
        ("<2.4", "CVE-2024-5980: files outside of the folder"),
    ],
    "transformers": [("<4.53", "CVE-2024-11392 and others: unpickling of checkpoints")],
    "numpy": [("<1.22", "CVE-2021-34141 and others")],
    "PyYAML": [("<5.4", "CVE-2020-14343: full_load runs code")],
    "urllib3": [
        ("<2.5", "CVE-2025-50181: redirects that were switched off"),
        ("<2.6", "CVE-2025-66418, CVE-2025-66471: answers that unfold without bound"),
    ],
    "scipy": [("<1.11.1", "CVE-2023-25399")],
    "pyarrow": [("<14.0.1", "CVE-2023-47248: reading a file runs code")],
    "sglang": [("<0.5.10", "CVE-2026-3059, CVE-2026-3060: pickles from the network")],
    "matplotlib": [],
    "tensorboard": [],
    "fastapi": [("<0.109.1", "CVE-2024-24762: a form that stops the server")],
    "starlette": [("<0.47.2", "CVE-2025-54121"), ("<0.49.1", "CVE-2025-62727: ranges that take the square of time")],
    "uvicorn": [("<0.11.7", "CVE-2020-7694, CVE-2020-7695")],
    "python-multipart": [("<0.0.18", "CVE-2024-53981")],
    "aiohttp": [("<3.12.14", "CVE-2025-53643: request smuggling")],
    "websockets": [("<9.1", "CVE-2021-33880")],
    "requests": [("<2.32.4", "CVE-2024-47081: passwords to other hosts")],
    "jinja2": [("<3.1.6", "CVE-2025-27516: templates leave their sandbox")],
    "pillow": [("<11.3", "CVE-2025-48379: memory")],
}  # fmt: skip


def requirements() -> list[Requirement]:
    """Of the package and of all its extras."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def lets_in(requirement: Requirement, bad: str) -> bool:
    """Whether a requirement can be met by a version with the hole `<X` or `==X`."""
    floors = [Version(s.version) for s in requirement.specifier if s.operator in (">=", "==", "~=", ">")]
    limit = Version(bad.lstrip("<="))
    if bad.startswith("=="):
        return requirement.specifier.contains(limit)
    return not floors or max(floors) < limit


def holes_of(requirement: Requirement) -> list[tuple[str, str]]:
    known = {name.lower(): holes for name, holes in HOLES.items()}
    return known.get(requirement.name.lower(), [])


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_a_floor_leaves_out_every_known_hole(requirement: Requirement):
    assert [why for bad, why in holes_of(requirement) if lets_in(requirement, bad)] == []


@pytest.mark.parametrize(
    ("line", "count"),
    [("torch>=2.5", 2), ("torch>=2.6", 1), ("torch>=2.10,<2.14", 0), ("lightning>=2.6,<2.7", 2), ("urllib3", 2)],
)
def test_a_floor_that_is_too_low_is_found(line: str, count: int):
    requirement = Requirement(line)
    assert sum(lets_in(requirement, bad) for bad, _ in holes_of(requirement)) == count


@pytest.mark.parametrize("name", HOLES)
def test_what_is_installed_here_has_none_of_them(name: str):
    try:
        version = Version(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed")
    found = [why for bad, why in HOLES[name] if Requirement(f"{name}{bad}").specifier.contains(version)]
    assert not found, f"{name} {version}"


def test_what_a_stranger_s_file_is_read_with_has_a_floor():
    open_ended = [
        str(r) for r in requirements() if not r.specifier and r.name in ("urllib3", "scipy", "PyYAML", "torch")
    ]
    assert open_ended == []
