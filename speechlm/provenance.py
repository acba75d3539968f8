"""Where a run comes from: code, packages, hardware and command, with nothing secret in it."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

REDACTED = "<redacted>"
MAX_DIFF = 1_000_000  # characters of `code_diff`
_SECRET_NAME = re.compile(
    r"(^|[_.-])(api_?key|secret|password|passwd|credentials?|(auth|access|api|hf|wandb)_?token)$", re.I
)
_SECRET_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.I)
_SECRET_FORM = re.compile(r"\b(wandb_v1_\w{20,}|hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|gh[pousr]_\w{20,})\b")
_MIN_SECRET = 8  # characters; shorter values of variables such as KEYBOARD=us would redact half the text


def provenance(command: list[str] | None = None) -> dict[str, Any]:
    """Everything needed to say what a result was made with, ready for JSON."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [redact(word) for word in redact_arguments(command or sys.argv)],
        "git": git_state(Path(__file__).resolve().parent),
        "python": platform.python_version(),
        "packages": installed_packages(),
        "hardware": hardware(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, and whether the tree differs from it; None outside a repository or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def short_commit() -> str:
    """Commit of this code, for people, "+" behind it where the tree differs; "" outside a repository or without git."""
    state = git_state(Path(__file__).resolve().parent)
    return "" if state is None else state["commit"][:7] + "+" * state["dirty"]


def code_diff(folder: Path) -> str:
    """What the code and its configs differ by from their commit, without secrets; empty where nothing does, or without git."""
    places = [f":/{name}" for name in ("speechlm", "datamodules", "callbacks", "configs", "slurm", "pyproject.toml")]
    diff = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--", *places) or ""
    shown = diff if len(diff) <= MAX_DIFF else f"{diff[:MAX_DIFF]}\n… {len(diff) - MAX_DIFF} characters more"
    return redact(shown + "\n") if shown else ""


def installed_packages() -> dict[str, str]:
    """Every installed distribution and its version, by name."""
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def hardware() -> dict[str, Any]:
    """Machine, cores, memory in GiB and accelerators."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "gpus": gpus,
        "cuda": torch.version.cuda,
    }


def redact(value: Any, name: str = "") -> Any:
    """`value` without secrets: what bears a secret's name, equals a secret environment variable, or looks like a known key."""
    if isinstance(value, dict):
        return {key: redact(child, str(key)) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [redact(child, name) for child in value]
    if value not in (None, "") and _SECRET_NAME.search(name):
        return REDACTED
    return _redact_text(value) if isinstance(value, str) else value


def redact_arguments(command: list[str]) -> list[str]:
    """A command line without the values of options that bear a secret's name, in both forms: `--a.key v` and `--a.key=v`."""
    words: list[str] = []
    hide_next = False
    for word in command:
        option, equals, _ = word.partition("=")
        secret = option.startswith("--") and bool(_SECRET_NAME.search(option))
        shown = option + equals + REDACTED if secret and equals else word
        words.append(REDACTED if hide_next and not word.startswith("--") else shown)
        hide_next = secret and not equals
    return words


def _redact_text(text: str) -> str:
    for variable, secret in os.environ.items():
        if len(secret) >= _MIN_SECRET and secret in text and _SECRET_VARIABLE.search(variable):
            text = text.replace(secret, REDACTED)
    return _SECRET_FORM.sub(REDACTED, text)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
