"""A saved workspace and a report for W&B, as code: `python -m speechlm.wandb_views --entity team --project speechlm [--dry-run]`.

Sections by stage, with the metrics of docs/cluster.md; a section without data stays empty. Needs `pip install 'speechlm[views]'`,
a key, and a server that answers; with --dry-run the workspace needs neither and is printed.
"""

import argparse
import json
import sys
from typing import Any

from speechlm.hidden_secrets import hide_secrets

SECTIONS: dict[str, list[tuple[str, str | list[str]]]] = {
    "training": [
        ("loss", ["train/loss"]),
        ("terms of the loss", r"train/loss_.*"),
        ("gradient norm", r"train/grad_norm.*"),
        ("updates left out", ["train/skipped_updates", "train/steps_skipped"]),
        ("learning rates", r"lr.*"),
    ],
    "sources": [
        ("loss by source", r"train/loss_by_source/.*"),
        ("loss by language", r"train/loss_by_language/.*"),
        ("ids seen by source", r"data/tokens_seen.*"),
        ("recordings skipped, by reason", r"data/skipped/.*"),
    ],
    "validation": [
        ("losses", r"val/.*/loss.*"),
        ("text: what is forgotten", r"val/.*text.*/loss.*"),
        ("word and character error rates", r"val/.*/(wer|cer).*"),
    ],
    "codebook": [
        ("codes in use", r"codebook/(usage|used/.*)"),
        ("perplexity", ["codebook/perplexity"]),
        ("bits per second", ["codebook/bits_per_sec"]),
        ("codes revived", r"codebook/(revived|dead).*"),
    ],
    "speed": [
        ("ids per second and GPU", ["perf/tokens_per_sec_per_gpu"]),
        ("hours of speech per hour", ["perf/hours_per_hour"]),
        ("MFU", ["perf/mfu"]),
        ("share of the time waiting for data", ["perf/data_wait"]),
        ("seconds a step", ["perf/step_sec"]),
        ("GPU memory, GiB", ["perf/memory_gib"]),
    ],
}
STEP = "trainer/global_step"


def panels(section: str) -> list[Any]:
    """The plots of a section."""
    from wandb_workspaces.reports.v2 import LinePlot

    plots = []
    for title, metrics in SECTIONS[section]:
        chosen = {"metric_regex": metrics} if isinstance(metrics, str) else {"y": list(metrics)}
        plots.append(LinePlot(title=title, x=STEP, **chosen))
    return plots


def media(sets: list[str]) -> list[Any]:
    """What is heard and seen: the tables of validation sets, and the codebook."""
    from wandb_workspaces.reports.v2 import MediaBrowser

    forms = ("", "/sounds", "/pictures")
    tables = [f"{kind}/{name}{form}" for kind in ("tokens", "listen") for name in sets for form in forms]
    pictures = ["codebook/rank_frequency", "codebook/counts"]
    return [
        MediaBrowser(title="sounds and tokens", media_keys=tables),
        MediaBrowser(title="codebook", media_keys=pictures),
    ]


def workspace(entity: str, project: str, sets: list[str]) -> Any:
    """A saved view of the project."""
    from wandb_workspaces.workspaces import Section, Workspace, WorkspaceSettings

    sections = [
        Section(name=name, panels=panels(name), is_open=name in ("training", "validation")) for name in SECTIONS
    ]
    sections.append(Section(name="sounds and pictures", panels=media(sets), is_open=True))
    settings = WorkspaceSettings(x_axis=STEP)
    return Workspace(entity=entity, project=project, name="speechlm", sections=sections, settings=settings)


def report(entity: str, project: str, sets: list[str]) -> Any:
    """A page to write between the plots of a run; W&B's client builds it only where it is logged in."""
    from wandb_workspaces.reports import v2

    runs = v2.Runset(entity=entity, project=project)
    blocks: list[Any] = [v2.TableOfContents()]
    for name in SECTIONS:
        blocks += [
            v2.H1(name.capitalize()),
            v2.P("What is seen here:"),
            v2.PanelGrid(runsets=[runs], panels=panels(name)),
        ]
    blocks += [v2.H1("Sounds and pictures"), v2.PanelGrid(runsets=[runs], panels=media(sets))]
    blocks += [
        v2.H1("What was run"),
        v2.P("Command, commit and code.diff are in the config and the files of each run."),
    ]
    return v2.Report(entity=entity, project=project, title="A run of speechlm", blocks=blocks)


def main(args: list[str] | None = None) -> None:
    """Build, and save or print."""
    hide_secrets()
    parser = argparse.ArgumentParser(prog="python -m speechlm.wandb_views", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entity", required=True, help="user or team of W&B")
    parser.add_argument("--project", default="speechlm", help="its project (default: speechlm)")
    sets = "validation sets whose tables are shown (default: heldout)"
    parser.add_argument("--sets", nargs="+", default=["heldout"], help=sets)
    parser.add_argument("--report", action="store_true", help="a report instead of a workspace")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent")
    options = parser.parse_args(args)
    try:
        made = (report if options.report else workspace)(options.entity, options.project, options.sets)
        if options.dry_run:
            print(json.dumps(made._to_model().model_dump(mode="json", by_alias=True, exclude_none=True), indent=1))
            return
        made.save()
    except ImportError as error:
        parser.error(f"{error}; pip install 'speechlm[views]'")
    except Exception as error:  # whatever a client of a remote service may raise
        sys.exit(f"W&B did not take it: {type(error).__name__}: {error}")
    print(made.url)


if __name__ == "__main__":
    main()
