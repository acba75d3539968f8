"""The families of faults, out of `families.yaml`."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

TABLE = Path(__file__).with_name("families.yaml")


@dataclass(frozen=True)
class Family:
    """One family of faults.

    Args:
        number: 1 to 56.
        group: what it is about.
        title: what happens.
        promise: R, S, F, B or several, see the table.
        tests: regular expressions of "file::test[case]", from `tests/`.
        cannot: why it is not run here, where it is not.
    """

    number: int
    group: str
    title: str
    promise: str
    tests: tuple[str, ...] = ()
    cannot: str = ""

    def has(self, node: str) -> bool:
        """Whether a test, by its id, is one of this family's."""
        name = node.removeprefix("tests/")
        return any(re.match(pattern, name) for pattern in self.tests)


def read_families() -> list[Family]:
    """All of them, in order."""
    groups = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return [
        Family(number, group, row["title"], row["promise"], tuple(row.get("tests", ())), row.get("cannot", ""))
        for group, rows in groups.items()
        for number, row in rows.items()
    ]
