"""Every config that ships has one line in the ledger, and a line that claims a result leads to it."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LEDGER = ROOT / "docs" / "ledger.md"


class Entry(NamedTuple):
    """A line of the ledger."""

    config: str
    status: str
    commit: str
    wall_time: str
    outcome: str


def entries() -> list[Entry]:
    """All lines of the table."""
    lines = [line for line in LEDGER.read_text(encoding="utf-8").splitlines() if line.startswith("| configs/")]
    return [Entry(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines]


def shipped() -> list[str]:
    """Configs under version control that are no twins."""
    names = subprocess.run(["git", "ls-files", "configs"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in names.split() if name.endswith(".yaml") and "tiny" not in name]


def anchors(page: Path) -> set[str]:
    """What the page's headings are linked by."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_config_has_exactly_one_entry_and_every_entry_a_config():
    listed = [entry.config for entry in entries()]
    assert sorted(listed) == sorted(set(listed))
    assert [name for name in shipped() if name not in listed] == [], "add a line to docs/ledger.md"
    assert [name for name in listed if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.config)
def test_a_status_is_one_of_three_and_a_run_says_when_how_long_and_what(entry: Entry):
    assert entry.status in ("run", "part", "planned")
    if entry.status != "planned":
        assert re.fullmatch(r"[0-9a-f]{7}", entry.commit) and entry.wall_time and entry.outcome
    else:
        assert not entry.commit and not entry.wall_time


def test_links_of_the_ledger_lead_to_headings():
    links = re.findall(r"\]\((\w+\.md)#([\w\-.]+)\)", LEDGER.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if link[1] not in anchors(ROOT / "docs" / link[0])] == []
