"""The whole system, stage by stage, on the real speech that ships with the code: `python -m speechlm.tour [--short]`.

For now the first stage: a speech tokenizer is trained and reported on. Steps that are done are skipped, a step that was
interrupted goes on.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from speechlm import fit, tokenizer_report

ROOT = Path(__file__).parents[1]
CONFIG = "configs/speech_tokenizer/embedded.yaml"


@dataclass(frozen=True)
class Step:
    """One thing the tour does: a title, the command that does the same by hand, and the call."""

    title: str
    command: str
    call: Callable[[], None]


def steps(runs_dir: str, short: bool, console: Console) -> list[Step]:
    """The tour, in order."""
    name = "embedded_short" if short else "embedded"
    run = Path(runs_dir) / name
    less = ["--trainer.max_steps", "30", "--trainer.val_check_interval", "30"] if short else []
    fit_args = ["--config", CONFIG, "--name", name, "--runs_dir", runs_dir, *less]
    limit = 12 if short else None
    report_args = f"--run {run}" + (f" --limit {limit}" if limit else "")

    def report() -> None:
        tokenizer_report.show(tokenizer_report.report(run, limit=limit), console)
        console.print(f"\nopen [bold]{run / 'report.html'}[/bold] in a browser")

    return [
        Step(
            "Speech becomes tokens: train a tokenizer on 21 minutes of real speech",
            f"python -m speechlm.fit {' '.join(fit_args)}",
            lambda: fit.main(fit_args),
        ),
        Step("What it has learnt", f"python -m speechlm.tokenizer_report {report_args}", report),
    ]


def main() -> None:
    """Run every step and say what each took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few steps of everything, to see that it works")
    parser.add_argument("--runs_dir", default="runs", help="where run folders lie")
    args = parser.parse_args()
    if not Path(CONFIG).is_file():
        parser.error(f"{CONFIG} is not here; start the tour in the repository's root, {ROOT}")
    console = Console()
    began = time.monotonic()
    for number, step in enumerate(steps(args.runs_dir, args.short, console), 1):
        console.print(Rule(f"{number}. {step.title}"))
        console.print(f"[dim]the same by hand: {step.command}[/dim]\n", highlight=False, soft_wrap=True)
        step.call()
    console.print(f"\nthe tour took {(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
