"""What a trained model is, for the people who find it later: a README.md beside its weights."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from callbacks.jsonl import METRICS, read_metrics
from datamodules.data_card import licences_of
from speechlm import runs
from speechlm.files import write_text_atomic

PAGE = "README.md"
STARTS = ("whisper", "lm", "source")  # arguments that name what a stage started from


def write_model_card(run: str | Path, stage: L.LightningModule, out: str | Path, form: str) -> None:
    """README.md in an exported folder; one that is there, such as that of the starting model, stays as it is.

    Args:
        run: the run that was exported.
        stage: what it trained.
        out: the exported folder.
        form: of the export.
    """
    page = Path(out) / PAGE
    if page.parent.is_dir() and not page.exists():
        write_text_atomic(page, model_card(Path(run), stage, form))


def model_card(run: Path, stage: L.LightningModule, form: str) -> str:
    """Markdown with the front matter of a model hub: shape, data, protocol, results and what is not known."""
    config, last = runs.read_config(run) or {}, last_values(run)
    model = config.get("model", {}).get("init_args", {})
    base = [model[name] for name in STARTS if isinstance(model.get(name), str)]
    vocab: Any = getattr(stage, "vocab", None)
    facts = {
        "stage": type(stage).__name__,
        "form": form,
        "weights": f"{sum(p.numel() for p in stage.parameters()):,}",
        "started from": ", ".join(base) or "random numbers",
        "tokens per second": str(config.get("clock", {}).get("token_rate_hz", "")),
        "vocabulary": vocab.hash if vocab is not None else "",
        **seen(last),
        "code": code_of(run),
    }
    parts = [
        front_matter(config, stage, form, base),
        f"# {config.get('name', run.name)}\n",
        table(("", ""), [(name, value) for name, value in facts.items() if value]),
        "## Data\n",
        data(config),
        "## Results\n",
        results(last) or "None were measured in the run.\n",
        "Values of the run's last validation, on the sets that its config names. What nobody measured is not here: other "
        "corpora, voices and languages, bias and misuse.\n",
        "## Again\n",
        f"```bash\npython -m speechlm.fit --config {run / 'config.yaml'} --name {run.name}_again\n```\n",
    ]
    return "\n".join(parts)


def front_matter(config: Mapping[str, Any], stage: L.LightningModule, form: str, base: list[str]) -> str:
    """What a model hub sorts models by."""
    front = {
        "library_name": "transformers" if form in ("hf", "whisper") else "speechlm",
        "tags": ["speech", type(stage).__name__],
        "language": sorted({source["language"] for source in train_sources(config) if source.get("language")}),
        "base_model": base,
    }
    return "---\n" + "\n".join(f"{name}: {json.dumps(value)}" for name, value in front.items() if value) + "\n---\n"


def seen(last: Mapping[str, float]) -> dict[str, str]:
    """How much a run had seen at its last logged step, "" where it did not say."""
    ids = [value for name, value in last.items() if name.startswith("data/tokens_seen/")]
    return {
        "steps": str(last.get("step", "")),
        "hours heard": f"{last['data/hours']:.1f}" if "data/hours" in last else "",
        "ids seen": f"{sum(ids):,.0f}" if ids else "",
    }


def data(config: Mapping[str, Any]) -> str:
    """Training sources as a table."""
    rows = [
        (
            f"`{source['path']}`",
            source.get("language") or "",
            str(source.get("weight", "")),
            "; ".join(licences_of([source["path"]])),
        )
        for source in train_sources(config)
    ]
    return table(("source", "language", "weight", "licence"), rows)


def train_sources(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The data section's training sources."""
    for source in config.get("data", {}).get("init_args", {}).get("train") or []:
        if isinstance(source, Mapping) and "path" in source:
            yield dict(source)


def last_values(run: Path) -> dict[str, float]:
    """The last value of everything the run logged; nothing where it logged nothing."""
    series = read_metrics(run) if (run / METRICS).is_file() else {}
    steps = [step for values in series.values() for step in values]
    last = {name: values[max(values)] for name, values in series.items()}
    return {**last, "step": max(steps)} if steps else {}


def results(last: Mapping[str, float]) -> str:
    """Validation values as a table; empty where there are none."""
    found = sorted((name, value) for name, value in last.items() if name.startswith("val/"))
    return table(("measure", "value"), [(name, f"{value:.4g}") for name, value in found]) if found else ""


def code_of(run: Path) -> str:
    """Commit that trained, and whether it had changes."""
    path = run / "env.json"
    git = (json.loads(path.read_text(encoding="utf-8")).get("git") if path.is_file() else None) or {}
    return f"{git.get('commit', '')[:12]}{' with changes' if git.get('dirty') else ''}" if git else ""


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; the head alone where there are no rows."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines) + "\n"
