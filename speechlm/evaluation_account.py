"""What became of every line of a task's items and of every item that was asked: a number of it, or a reason, and nothing else."""

from collections.abc import Sequence

from speechlm.conservation import Account
from speechlm.evals.items import ItemFile
from speechlm.evals.suite import TaskResult
from speechlm.evals.task import Record


def lines_account(file: ItemFile, limit: int | None) -> Account:
    """Of the lines of an item file, counted anew: items, refused ones, and those behind a task's limit."""
    text = file.path.read_bytes().decode("utf-8")
    lines = sum(1 for line in text.splitlines() if line.strip())
    refused = {reason: len(names) for reason, names in file.refused.items()}
    beyond = 0 if limit is None else max(0, lines - sum(refused.values()) - limit)
    return Account(
        "lines", lines, len(file.items), {**refused, "beyond the limit": beyond}, ("in", "asked", "not asked")
    )


def items_account(result: TaskResult, records: Sequence[Record]) -> Account:
    """Of the items that were asked: a record that can be counted, or a problem that the result names, once."""
    named = {name for names in result.problems.values() for name in names}
    counted = [record["id"] for record in records if not record.get("problem") and record["id"] not in named]
    problems = {reason: len(names) for reason, names in result.problems.items()}
    return Account("items", result.items, len(counted), problems, ("asked", "counted", "not counted"))
