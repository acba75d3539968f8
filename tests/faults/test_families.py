"""The table of families is whole, and names tests that exist."""

import ast
import re
from pathlib import Path

from tests.faults.families import read_families

ROOT = Path(__file__).parents[2]
FAMILIES = read_families()


def test_there_are_fifty_six_and_each_is_covered_or_says_why_not():
    assert [family.number for family in FAMILIES] == list(range(1, 57))
    assert all(bool(family.tests) != bool(family.cannot) for family in FAMILIES)
    assert sum(bool(family.tests) for family in FAMILIES) >= 50


def names_of_tests() -> list[str]:
    """ "file::test" of all tests there are."""
    return [
        f"{path.relative_to(ROOT / 'tests').as_posix()}::{node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def test_every_pattern_finds_a_test():
    names = names_of_tests()
    beginnings = [(family.number, re.split(r"[.][*]", pattern)[0]) for family in FAMILIES for pattern in family.tests]
    lost = [(number, begin) for number, begin in beginnings if not any(re.match(begin, name) for name in names)]
    assert not lost
