"""The whole system, stage by stage, on the real speech that ships with the code: `python -m speechlm.tour [--short]`.

Every step is a command of its own, printed before it runs, through the same verbs and configs as a run on a cluster. Steps that
are done are skipped, a step that was interrupted goes on. At the end there is one page with what each step did and learnt.
"""

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from speechlm.guide.page import write_page
from speechlm.guide.plan import load_plan
from speechlm.guide.record import Record
from speechlm.guide.step import Step
from speechlm.guide.steps import Tour
from speechlm.hidden_secrets import hide_secrets

PLAN = "configs/tour/plan.yaml"


def run(todo: list[Step], record: Record, console: Console) -> None:
    """Every step that is not done, in order; what each took is kept."""
    for number, step in enumerate(todo, 1):
        console.print(Rule(f"{number} of {len(todo)}. {step.title}"))
        console.print(f"[dim]{step.command}[/dim]\n", highlight=False, soft_wrap=True)
        if record.is_done(step):
            console.print("done before")
            continue
        began = time.monotonic()
        step.call()
        record.done(step, time.monotonic() - began)


def main() -> None:
    """Run every step and say what each took."""
    hide_secrets()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--plan", default=PLAN, help="corpora and configs; configs/mini/plan.yaml is for one GPU and one day"
    )
    parser.add_argument("--short", action="store_true", help="a few steps of everything, to see that it works")
    parser.add_argument("--out", type=Path, help="where everything is kept; runs/<name of the plan> where not said")
    args = parser.parse_args()
    if not Path(PLAN).is_file():
        parser.error(f"{PLAN} is not here; start in a clone, or in a folder made by: python -m speechlm.start FOLDER")
    try:
        plan = load_plan(args.plan)
    except (OSError, ValueError) as error:
        parser.error(f"--plan: {error}")
    console = Console()
    began = time.monotonic()
    out = args.out or Path("runs") / (f"{plan.name}_short" if args.short else plan.name)
    todo, record = Tour(plan, out, args.short).steps(), Record(out / "tour.json")
    try:
        record.require_order(todo)
    except ValueError as error:
        parser.error(str(error))
    run(todo, record, console)
    page = write_page(out, plan, todo, record)
    console.print(
        f"\nthe tour took {(time.monotonic() - began) / 60:.1f} minutes; open [bold]{page}[/bold] in a browser"
    )


if __name__ == "__main__":
    main()
