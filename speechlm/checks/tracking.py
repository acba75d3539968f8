"""Weights & Biases: whether it would log, and where to. No key is ever shown."""

import netrc
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

from speechlm.checks.finding import Finding

TIMEOUT_SEC = 10.0


def wandb_is_ready(loggers: list[dict[str, Any]]) -> Iterator[Finding]:
    """A key where one is needed, a server that answers, a clock like its own.

    Args:
        loggers: of the trainer's config.
    """
    found = [logger for logger in loggers if "Wandb" in logger.get("class_path", "")]
    if not found:
        yield Finding("W&B", "good", "not in the config; metrics go to metrics.jsonl")
        return
    offline = found[0].get("init_args", {}).get("offline") or os.environ.get("WANDB_MODE") in (
        "offline",
        "disabled",
        "dryrun",
    )
    if offline:
        yield Finding("W&B", "good", "offline: everything stays in the run folder, for `wandb sync`")
        return
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if not _has_key(address):
        yield Finding(
            "W&B",
            "broken",
            "no key in WANDB_API_KEY or ~/.netrc",
            "run `wandb login`, export WANDB_API_KEY, or set WANDB_MODE=offline",
        )
        return
    yield from _server(address)


def _server(address: str) -> Iterator[Finding]:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_SEC) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:  # it answers, and that is all that was asked
        date = error.headers.get("Date")
    except (OSError, ValueError) as error:
        text = str(getattr(error, "reason", error))
        yield Finding(
            "W&B",
            "mind",
            f"{address} does not answer: {text}",
            "the run will be kept offline; afterwards `wandb sync` on a machine with network",
        )
        return
    yield Finding("W&B", "good", f"{address} answers, and there is a key for it")
    yield from _skew(date)


def _skew(date: str | None) -> Iterator[Finding]:
    if not date:
        return
    skew = abs(time.time() - parsedate_to_datetime(date).timestamp())
    if skew > 60.0:
        yield Finding(
            "clock",
            "mind",
            f"{skew:.0f} s off the W&B server's",
            "set this machine's clock: charts by time will be wrong",
        )


def _has_key(address: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urllib.parse.urlsplit(address).hostname or ""
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
