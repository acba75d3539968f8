"""What a run takes before it is paid for: `python -m speechlm.plan --config configs/speech_lm/glm4_9b.yaml --gpus 64xH800`.

Memory of a GPU by part, operations per token, expected speed, GPU-hours and cost. Give several configs, one a stage, for a whole
system. `--calibrate` runs 20 steps of a slice of the language model on this machine first. See docs/performance.md.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from speechlm.files import write_text_atomic
from speechlm.fit import ParsedCLI, build
from speechlm.hidden_secrets import hide_secrets
from speechlm.nn.speed import Speed
from speechlm.planning.calibrate import Calibrated, calibrate
from speechlm.planning.machines import Machine, machine
from speechlm.planning.stages import Plan, lm_run, plan_language_model, plan_sound, plan_synthesis
from speechlm.safe_yaml import read_yaml
from speechlm.stages.flow_decoder import FlowDecoder
from speechlm.stages.speech_lm import SpeechLM
from speechlm.stages.speech_tokenizer import SpeechTokenizer
from speechlm.stages.vocoder import Vocoder

EFFICIENCY = 0.4  # published PyTorch stacks on H100: 0.34 to 0.46 (docs/performance.md)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m speechlm.plan", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "--config", action="append", required=True, help="of a stage, or of synthesis; several are added up"
    )
    parser.add_argument("--gpus", type=_machine, required=True, help="such as 64xH800")
    parser.add_argument(
        "--own_gpus", action="store_true", help="of that kind, but as many as the config's trainer names, where it does"
    )
    parser.add_argument("--price", type=float, default=2.0, help="of a GPU-hour (default: 2)")
    parser.add_argument(
        "--efficiency",
        type=float,
        default=EFFICIENCY,
        help=f"share of the data sheet's operations (default: {EFFICIENCY})",
    )
    parser.add_argument("--document_tokens", type=int, help="ids of a document (default: a whole row)")
    parser.add_argument(
        "--synthesis_tokens_per_sec", type=float, help="and GPU, where measured (default: the paper's 25000)"
    )
    parser.add_argument("--calibrate", action="store_true", help="time 20 steps of a slice on this machine")
    parser.add_argument("--calibrate_rows", type=int, help="rows of those steps (default: the config's)")
    parser.add_argument("--markdown", action="store_true", help="the stages and their GPU-hours as a table in Markdown")
    parser.add_argument("--json", metavar="FILE", help="write the numbers; - for the output, without the table")
    return parser


def plan_of(path: str, args: argparse.Namespace) -> tuple[Plan, Calibrated | None]:
    """Of one config."""
    plain = read_yaml(path)
    if "model" not in plain:
        raise ValueError(f"{path} names no model; configs of speechlm.fit and speechlm.synthesize can be planned")
    if not isinstance(plain["model"], dict):
        return plan_synthesis(plain, args.gpus, args.synthesis_tokens_per_sec, f"synthesis {Path(path).stem}"), None
    with tempfile.TemporaryDirectory() as folder:
        config = _parsed(path, folder)
    gpus = _own_gpus(config["trainer"], args.gpus) if args.own_gpus else args.gpus
    stage = _stage(config["model"]["class_path"])
    name = f"{stage.__name__} {Path(path).stem}"
    if issubclass(stage, SpeechLM):
        efficiency, found = args.efficiency, None
        if args.calibrate:
            found = _calibrated(config, args)
            efficiency = _efficiency(config, args, found) or efficiency
        return plan_language_model(config, gpus, efficiency, args.document_tokens, name), found
    kinds = {SpeechTokenizer: "tokenizer", FlowDecoder: "flow", Vocoder: "vocoder"}
    kind = next((kind for known, kind in kinds.items() if issubclass(stage, known)), None)
    if kind is None:
        raise ValueError(
            f"{path}: no plan for {stage.__name__}; known are SpeechLM, {', '.join(s.__name__ for s in kinds)}"
        )
    return plan_sound(config, gpus, args.efficiency, kind, name), None


def _parsed(path: str, folder: str) -> dict[str, Any]:
    """Every setting, as training would have it; nothing is built."""
    return build(["--config", path, "--runs_dir", folder], ParsedCLI).plain_config


def _own_gpus(trainer: dict[str, Any], gpus: Machine) -> Machine:
    """As many as a config's trainer names; all where it leaves that to the machine."""
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes") or 1
    return replace(gpus, gpus=devices * nodes) if isinstance(devices, int) and devices > 0 else gpus


def _stage(class_path: str) -> type:
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


def _calibrated(config: dict[str, Any], args: argparse.Namespace) -> Calibrated:
    run = _slice(config, args)
    model = config["model"]["init_args"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    attention: Any = model.get("attention") if device.type == "cuda" else "auto"
    return calibrate(run, device, 20, args.document_tokens, attention or "auto", Speed(**(model.get("speed") or {})))


def _slice(config: dict[str, Any], args: argparse.Namespace) -> Any:
    run, _ = lm_run(config, args.gpus)
    return run if args.calibrate_rows is None else type(run)(**{**run.__dict__, "rows": args.calibrate_rows})


def _efficiency(config: dict[str, Any], args: argparse.Namespace, found: Calibrated) -> float | None:
    """What was reached of the data sheet, where this machine has the GPU that is planned with."""
    if not (torch.cuda.is_available() and args.gpus.name in torch.cuda.get_device_name()):
        return None
    run = _slice(config, args)
    plan = plan_language_model(config, args.gpus, 1.0, args.document_tokens, "")
    operations = run.positions * plan.gflop_per_unit * 1e9 * plan.executed
    return operations / found.seconds(run.shape.num_hidden_layers) / (args.gpus.tflops * 1e12)


def table_of(plans: list[Plan], gpus: Machine, price: float) -> Table:
    """A row for each stage, and their sum."""
    table = Table(title=f"{gpus.gpus} x {gpus.name}, {gpus.memory_gib:g} GiB each; {price:g} per GPU-hour")
    for column in (
        "stage",
        "parameters",
        "GiB of a GPU",
        "GFLOP per unit",
        "units/s",
        "units of the run",
        "GPU-hours",
        "cost",
    ):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for plan in plans:
        full = "[red]" if plan.total_gib > gpus.memory_gib else ""
        table.add_row(
            plan.stage,
            f"{plan.parameters / 1e6:,.0f} M",
            f"{full}{plan.total_gib:.1f}",
            f"{plan.gflop_per_unit:.2f} x {plan.executed:.2f}",
            f"{plan.units_per_sec:,.0f} {plan.unit} ({plan.bound})",
            f"{plan.units:.3g}" if plan.units else "not said",
            amount(plan.gpu_hours) if plan.units else "not said",
            amount(plan.gpu_hours * price) if plan.units else "not said",
        )
    hours = sum(plan.gpu_hours for plan in plans)
    table.add_row("all", "", "", "", "", "", amount(hours), amount(hours * price), style="bold")
    return table


def amount(number: float) -> str:
    """Hours or money, with a digit behind the point where there are few of them."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def markdown_of(plans: list[Plan], configs: list[str], gpus: Machine) -> str:
    """Stages, what they see and their GPU-hours, in lines."""
    lines = ["| stage | config | sees | on | GPU-hours |", "|---|---|---|---|---|"]
    for plan, config in zip(plans, configs, strict=True):
        seen = f"{plan.units:.1e} tokens" if plan.unit == "tokens" else f"{plan.units / 3600:,.0f} hours of sound"
        stage = plan.stage.split()[0]
        lines.append(f"| {stage} | `{config}` | {seen} | {plan.gpus} {gpus.name} | {amount(plan.gpu_hours)} |")
    return "\n".join(lines)


def show(plans: list[Plan], found: list[Calibrated | None], args: argparse.Namespace) -> None:
    """The table, the memory by part, and what the numbers rest on."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table_of(plans, args.gpus, args.price))
    for plan, measured in zip(plans, found, strict=True):
        parts = ", ".join(f"{name} {size:.2f}" for name, size in plan.memory_gib.items() if size)
        console.print(f"[bold]{plan.stage}[/]: {parts} GiB", highlight=False)
        console.print("  " + "; ".join(plan.notes), style="dim", highlight=False)
        if plan.total_gib > args.gpus.memory_gib:
            console.print(
                f"  does not fit into {args.gpus.memory_gib:g} GiB: fewer batch_rows, activation_checkpointing, or more GPUs",
                style="red",
            )
        if measured is not None:
            console.print(f"  this machine: {measured.layer_sec:.4g} s a layer, {measured.rest_sec:.4g} s for the rest")


def main(argv: list[str] | None = None) -> None:
    """Plan, print, write."""
    hide_secrets()
    args = build_parser().parse_args(argv)
    try:
        plans, found = zip(*(plan_of(path, args) for path in args.config), strict=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if args.json:
        values = {
            "stages": [plan.as_dict(args.price) for plan in plans],
            "calibrated": [f and f._asdict() for f in found],
        }
        text = json.dumps(values, indent=1)
        if args.json == "-":
            print(text)
        else:
            write_text_atomic(args.json, text + "\n")
    if args.markdown:
        print(markdown_of(list(plans), args.config, args.gpus))
    elif args.json != "-":
        show(list(plans), list(found), args)


def _machine(text: str) -> Machine:
    try:
        return machine(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    main()
