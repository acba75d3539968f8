"""What pytest found out about each injection: a plugin that keeps the tests of the families, and the outcome of each."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.faults.families import Family
from tests.faults.kept import Ended, Kept


@dataclass
class Tried:
    """Injections of one family."""

    survived: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, one: "Ended") -> None:
        """Count a test."""
        if one.outcome == "passed":
            self.survived += int(one.properties.get("injections", 1))
        else:
            (self.failed if one.outcome == "failed" else self.skipped).append(one.node)


class Injections:
    """A pytest plugin.

    Args:
        families: whose tests are run.
        fast: leave out tests that are marked slow.
        kept: how tests ended before and now; those that failed are run again, others that are in it are not.
    """

    def __init__(self, families: list[Family], fast: bool, kept: Kept) -> None:
        self.families, self.fast, self.kept = families, fast, kept
        self.ended = kept.ended

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Keep what belongs to a family, and is not known yet."""
        kept = [item for item in items if any(family.has(item.nodeid) for family in self.families)]
        kept = [item for item in kept if not (self.fast and item.get_closest_marker("slow"))]
        kept = [item for item in kept if not self._is_known(item.nodeid)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note one test's end; a test may say of itself how many faults it injected."""
        if report.when != "call" and report.passed:
            return
        self.kept.add(Ended(report.nodeid, report.outcome, round(report.duration, 3), dict(report.user_properties)))

    def _is_known(self, node: str) -> bool:
        return node in self.ended and self.ended[node].outcome != "failed"

    @property
    def tried(self) -> dict[int, Tried]:
        """Injections by family."""
        found = {family.number: Tried() for family in self.families}
        for family in self.families:
            for one in self.ended.values():
                if family.has(one.node):
                    found[family.number].add(one)
        return found

    @property
    def flips(self) -> Counter[str]:
        """Flipped bits that were found, by what they were flipped in; tests that missed one failed."""
        counts = Counter[str]()
        for one in self.ended.values():
            if one.outcome == "passed" and "flips" in one.properties:
                counts[one.properties["store"]] += one.properties["flips"]
        return counts

    @property
    def injected(self) -> tuple[int, list[str]]:
        """All injections, each counted once, and the tests of those that were not survived."""
        ours = [one for one in self.ended.values() if any(family.has(one.node) for family in self.families)]
        failed = [one.node for one in ours if one.outcome == "failed"]
        return sum(int(one.properties.get("injections", 1)) for one in ours if one.outcome != "skipped"), failed


def run(families: list[Family], fast: bool, kept: Kept, *arguments: str) -> Injections:
    """Run the tests of families, wherever they are."""
    plugin = Injections(families, fast, kept)
    marks = "not slow" if fast else ""
    code = pytest.main(["-m", marks, "-p", "no:cacheprovider", *arguments, "tests"], plugins=[plugin])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise SystemExit(f"the suite did not come to its end: {pytest.ExitCode(code).name}")
    return plugin
