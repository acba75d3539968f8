"""What would fail, before it does: `python -m speechlm.doctor --config configs/<stage>/<name>.yaml [--quick] [--json FILE]`.

Looks at data, weights, disk, file system, clock, packages, devices, attention, NCCL and W&B, and says of each what to do. Exit
code 1 where something is broken. Other arguments are those of speechlm.fit.
"""

import argparse
import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from speechlm.checks import data, devices, machine, tracking
from speechlm.checks.finding import Finding, guarded
from speechlm.files import write_text_atomic
from speechlm.hidden_secrets import hide_secrets

COLOURS = {"good": "green", "mind": "yellow", "broken": "red"}


def build_parser() -> argparse.ArgumentParser:
    """The doctor's own arguments; all others go to `speechlm.fit`."""
    parser = argparse.ArgumentParser(
        prog="python -m speechlm.doctor",
        usage="%(prog)s --config FILE [--quick] [--json FILE] [arguments of speechlm.fit]",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", required=True, help="of the run; several are stacked")
    parser.add_argument("--quick", action="store_true", help="sizes and headers of the data, not every byte")
    parser.add_argument(
        "--json", metavar="FILE", help="write the findings there, too; - for the output, without the table"
    )
    return parser


def examine(config: dict[str, Any], folder: Path, quick: bool) -> Iterator[Finding]:
    """Every check, one after another.

    Args:
        config: of the run, plain values.
        folder: of the run.
        quick: leave out what reads all of the data.
    """
    trainer, arguments = config["trainer"], config["model"].get("init_args") or {}
    count = str(trainer.get("devices"))  # a number, a list of them, or "auto"
    processes = int(count) if count.isdigit() else 0
    workers = (config["data"].get("init_args") or {}).get("num_workers") or 0
    keep = (config.get("checkpoint") or {}).get("keep", 3)
    loggers = trainer.get("logger")
    as_list = loggers if isinstance(loggers, list) else [loggers] if isinstance(loggers, dict) else []
    yield from guarded("packages", machine.packages_fit)
    yield from guarded("run folder", lambda: machine.folder_is_writable(folder))
    yield from guarded("disk", lambda: machine.disk_is_large_enough(folder, data.checkpoint_bytes(config), keep))
    if os.access(folder, os.W_OK):
        yield from guarded("file system", lambda: machine.file_system_is_fast(folder, 16 if quick else 64))
        yield from guarded("clock", lambda: machine.clock_is_right(folder))
    yield from guarded("limits", lambda: machine.limits_are_wide(workers))
    yield from guarded("weights", lambda: data.weights_are_there(config))
    yield from guarded("data", lambda: data.data_is_whole(config, quick))
    yield from guarded("devices", lambda: devices.gpus_are_there(str(trainer.get("accelerator")), processes))
    if "attention" in arguments:
        yield from guarded("attention", lambda: devices.attention_works(arguments["attention"]))
    yield from guarded("NCCL", lambda: devices.processes_talk(processes))
    yield from guarded("W&B", lambda: tracking.wandb_is_ready(as_list))


def show(findings: list[Finding]) -> None:
    """A table, wide enough for a log where there is no terminal."""
    table = Table(title=f"{socket.gethostname()}", title_justify="left")
    for column in ("", "check", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for one in findings:
        table.add_row(
            f"[{COLOURS[one.status]}]{one.status}[/]",
            one.check,
            one.found.replace("[", r"\["),
            one.advice.replace("[", r"\["),
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)


def main(args: list[str] | None = None) -> None:
    """Examine, show, and exit with 1 where something is broken, with 2 where the config itself is."""
    hide_secrets()
    from speechlm.fit import ParsedCLI, build  # the slow import comes after the arguments were understood

    options, rest = build_parser().parse_known_args(args)
    cli = build([word for config in options.config for word in ("--config", config)] + rest, ParsedCLI)
    findings = list(examine(cli.plain_config, cli.folder, options.quick))
    broken = sum(one.status == "broken" for one in findings)
    report = {"host": socket.gethostname(), "broken": broken, "findings": [asdict(one) for one in findings]}
    text = json.dumps(report, indent=1) + "\n"
    if options.json == "-":
        print(text, end="")
    else:
        show(findings)
        if options.json:
            write_text_atomic(options.json, text)
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    main()
