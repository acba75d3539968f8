"""The fault suite: `python -m tests.faults` injects every family of faults, here and into the bare stack; writes docs/faults.md.

`--fast` leaves out what is slow and writes nothing; `--only 19 29` runs some families; other words go to pytest, such as `-q`.
With `--keep FILE` a suite that was interrupted goes on where it was, as long as the code is the same; what had failed is run
again, and the page says what passed only then.
"""

import argparse
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from tests.faults import bare_data, bare_training
from tests.faults.bare_data import Outcome
from tests.faults.families import Family, read_families
from tests.faults.kept import Kept
from tests.faults.results import Injections, run

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
BEGIN, END = "<!-- written by python -m tests.faults -->", "<!-- end -->"
GOOD = ("caught", "recovered")


def page(families: list[Family], ours: Injections, bare: list[Outcome], load: float) -> str:
    """The tables."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    lines = [
        f"Commit {commit.strip()}, {datetime.now(UTC):%Y-%m-%d}: {took(ours.kept)}; {os.cpu_count()} cores, shared by {load:.0f} "
        f"processes at its end.",
        "",
        *totals(families, ours, bare),
        "",
        "| family | promise | here: survived / injected | bare stack |",
        "|---|---|---|---|",
    ]
    group = ""
    for family in families:
        if family.group != group:
            group = family.group
            lines.append(f"| **{group}** | | | |")
        lines.append(row(family, ours, bare))
    return "\n".join(lines)


def took(kept: Kept) -> str:
    """How long it was, and what it would be where nothing else runs."""
    used = kept.processor_seconds
    processor = "" if used is None else f", {used / 60:.0f} minutes of a processor"
    sessions = f" in {len(kept.sessions)} sessions" if len(kept.sessions) > 1 else ""
    return f"{kept.seconds / 60:.0f} minutes on the clock{sessions}{processor}"


def totals(families: list[Family], ours: Injections, bare: list[Outcome]) -> list[str]:
    """What it comes to."""
    covered = [tried for tried in ours.tried.values() if tried.survived and not tried.failed]
    injected, failed = ours.injected
    numbers = sorted({number for number, _, _ in bare})
    broken = [n for n in numbers if any(number == n and what not in GOOD for number, _, what in bare)]
    ways = Counter(what for _, _, what in bare)
    again = sorted(node for node in ours.kept.again if ours.ended[node].outcome == "passed")
    flips = ", ".join(f"{count} of {count} in {store}" for store, count in sorted(ours.flips.items()))
    return [
        f"- Here: **{len(covered)} of {len(families)} families survived, {injected} injections, {len(failed)} silent or "
        f"otherwise not as promised**. Flipped bits found: {flips or 'none tried'}.",
        f"- The bare stack (Lightning, Lhotse, torch's checkpoints, with their defaults): {len(numbers)} families tried with "
        f"{len(bare)} injections; {len(numbers) - len(broken)} families held, {len(broken)} did not: "
        + ", ".join(f"{count} {what}" for what, count in ways.most_common())
        + ".",
        *([f"- Passed only when they were run again: {', '.join(f'`{node}`' for node in again)}."] if again else []),
    ]


def row(family: Family, ours: Injections, bare: list[Outcome]) -> str:
    """One family."""
    tried = ours.tried[family.number]
    here = f"{tried.survived} / {tried.survived + len(tried.failed)}"
    if family.cannot or not tried.survived + len(tried.failed):
        here = f"not run: {family.cannot or (tried.skipped and 'all of its tests are skipped here') or 'no test'}"
    ways = Counter(what for number, _, what in bare if number == family.number)
    there = ", ".join(f"{count} {what}" for what, count in sorted(ways.items())) or "not tried"
    return f"| {family.number}. {family.title} | {family.promise} | {here} | {there} |"


def write(text: str) -> None:
    """Put the tables between the marks of the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    """Run, write, and fail where a fault was not survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="leave out what is marked slow, and the bare stack")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of families")
    parser.add_argument(
        "--keep", type=Path, help="file of what was found; a suite that was interrupted goes on with it"
    )
    settings, more = parser.parse_known_args()
    families = [f for f in read_families() if settings.only is None or f.number in settings.only]
    try:
        kept = Kept(settings.keep)
    except ValueError as error:
        parser.error(str(error))
    ours = run(families, settings.fast, kept, *more)
    whole = not settings.fast and settings.only is None
    if whole and kept.bare is None:
        kept.add_bare([*bare_data.outcomes(), *bare_training.outcomes()])
    kept.close()
    text = page(families, ours, kept.bare or [], os.getloadavg()[2])
    print(text)
    if whole:
        write(text)
    failed = ours.injected[1]
    if failed:
        sys.exit(f"{len(failed)} injections were not survived as promised:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
