"""What pytest found out about each injection: a plugin that keeps the tests of the families, and the outcome of each."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.faults.families import Family


@dataclass
class Tried:
    """Injections of one family."""

    survived: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Injections:
    """A pytest plugin.

    Args:
        families: whose tests are run.
        fast: leave out tests that are marked slow.
    """

    def __init__(self, families: list[Family], fast: bool = False) -> None:
        self.families, self.fast = families, fast
        self.tried = {family.number: Tried() for family in families}
        self.flips = Counter[str]()
        self.tests = 0
        self.began = time.monotonic()

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Keep what belongs to a family."""
        kept = [item for item in items if any(family.has(item.nodeid) for family in self.families)]
        kept = [item for item in kept if not (self.fast and item.get_closest_marker("slow"))]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept
        self.tests = len(kept)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note one test's end; a test may say of itself how many faults it injected."""
        properties = dict(report.user_properties)
        if report.when == "call" and report.passed and "flips" in properties:
            self.flips[properties["store"]] += properties["flips"]
        for family in self.families:
            if family.has(report.nodeid):
                self._note(self.tried[family.number], report, properties)

    def _note(self, tried: Tried, report: Any, properties: dict[str, Any]) -> None:
        tried.seconds += report.duration
        if report.skipped:
            tried.skipped.append(report.nodeid)
        elif report.failed:
            tried.failed.append(report.nodeid)
        elif report.when == "call":
            tried.survived += int(properties.get("injections", 1))


def run(families: list[Family], fast: bool, *arguments: str) -> Injections:
    """Run the tests of families, wherever they are."""
    plugin = Injections(families, fast)
    marks = "not slow" if fast else ""
    pytest.main(["-m", marks, "-p", "no:cacheprovider", *arguments, "tests"], plugins=[plugin])
    return plugin
