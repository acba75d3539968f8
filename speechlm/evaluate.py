"""Every metric of a suite in one run: `python -m speechlm.evaluate --config configs/evaluate/<suite>.yaml --model runs/<name> …`.

`--model` takes run folders, exported language models and released tokenizers, and knows which is which; `lm=FOLDER`
says it. Written to `--out`: `evaluation.json` with its schema, `evaluation.md`, `evaluation.html` with sounds, and the
records of every item, from which `--rescore` computes everything again without a model. Whatever was interrupted, the
identical command goes on; any number of processes share the work. See docs/evaluate.md.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema
import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers.utils import logging as transformers_logging

from speechlm.devices import choose_device
from speechlm.engines.base import Sampling
from speechlm.evals.evaluation_page import HEADER, markdown, page, rows, uncounted
from speechlm.evals.json_schema import schema_of
from speechlm.evals.planted import Planted
from speechlm.evals.records import canonical, digest, phases_of
from speechlm.evals.suite import Evaluation, Suite, TaskResult, is_judge
from speechlm.evals.task import Task
from speechlm.evaluated import Judges, ModelParts, SavedParts, roles_of
from speechlm.evaluation_account import items_account, lines_account
from speechlm.files import write_text_atomic
from speechlm.hidden_secrets import hide_secrets
from speechlm.job_cli import job_parser
from speechlm.provenance import git_state, hardware
from speechlm.ranks import find_rank

SCHEMA = 1
#: Which part of the model each hash belongs to.
MODEL_OF = {"tokens": "speech_tokenizer", "codes": "speech_tokenizer", "decoder": "flow_decoder"}


def build_parser() -> ArgumentParser:
    """The command line; constructors are its schema."""
    parser = job_parser(
        "speechlm.evaluate", __doc__, usage="--config FILE --model FOLDER ... [--section.key value ...]"
    )
    parser.add_argument("--name", type=str, required=True, help="of the suite")
    parser.add_argument("--tasks", type=dict[str, Task], required=True, help="tasks by name, by class_path")
    parser.add_argument("--model", nargs="+", type=str, default=[], help="[part=]FOLDER of each part of the model")
    parser.add_argument("--out", type=str, required=True, help="folder of the result and of the records")
    parser.add_argument("--only", nargs="+", type=str, default=[], help="names of the tasks to run, all by default")
    parser.add_class_arguments(Judges, "judges")
    parser.add_class_arguments(Sampling, "sampling")
    parser.set_defaults({"sampling.temperature": 0.0})
    parser.add_argument("--speaker", type=str, default="", help="of the decoder, where it has several")
    parser.add_argument("--bf16", type=bool, default=False, help="language models in bfloat16")
    parser.add_argument("--rescore", type=bool, default=False, help="score the records of --out again, without a model")
    parser.add_argument("--retry", type=bool, default=False, help="ask the judge again where it did not answer")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def evaluate(built: Any, console: Console | None = None) -> Evaluation | None:
    """Answer, score, write; None where other processes have work left.

    Raises:
        ValueError: an argument, an item file or a model can not be used.
    """
    console = console or Console(soft_wrap=True)
    place = find_rank(built.rank, built.world_size)
    out = Path(built.out)
    chosen = _chosen(built.tasks, built.only)
    roles = roles_of(built.model)
    parts: ModelParts | SavedParts | Planted
    if built.rescore:
        parts = _saved(out)
    elif "planted" in roles:
        parts = Planted(roles["planted"], chosen)
    else:
        dtype = torch.bfloat16 if built.bf16 else torch.float32
        device = choose_device(built.device, place.local_rank)
        parts = ModelParts(roles, built.judges, device, built.sampling, built.speaker, dtype)
    suite = Suite(
        chosen, parts, out, place, lambda line: console.print(line, style="dim", highlight=False, markup=False)
    )
    if not built.rescore:
        if built.retry:
            console.print(f"{suite.retry()} shards will be judged again")
        if not suite.answer():
            console.print(f"{out} is not complete: other processes have shards to answer yet")
            return None
        _remember(out, roles, parts.hashes)
    results, examples = suite.scored()
    account(suite, results, console)
    models, judges = _described(out, parts.hashes)
    protocol = digest({name: task.protocol for name, task in results.items() if not task.skipped})
    evaluation = Evaluation(
        SCHEMA, built.name, protocol, models, judges, results, hardware(), git_state(Path(__file__).resolve().parent)
    )
    write(out, evaluation, page(evaluation, examples))
    show(evaluation, console)
    return evaluation


def account(suite: Suite, results: dict[str, TaskResult], console: Console) -> None:
    """Say what became of every item of every task.

    Raises:
        Unaccounted: one has neither a number nor a reason.
    """
    for name, result in results.items():
        task, file = suite.tasks[name], suite.files[name]
        accounts = [lines_account(file, getattr(task, "limit", None))]
        if not result.skipped:
            *_, (_, folder, _) = phases_of(task, name, file, suite.parts.hash_of, suite.out)
            accounts.append(items_account(result, folder.read_all()))
        for one in accounts:
            one.require(f"{suite.out}, {name}")
        console.print(f"{name}: {'; '.join(map(str, accounts))}", style="dim", highlight=False, markup=False)


def write(out: Path, evaluation: Evaluation, html: str) -> None:
    """JSON with its schema, which it is checked against, Markdown and the page.

    Raises:
        jsonschema.ValidationError: the result is not what the schema says, which is a defect.
    """
    schema = schema_of(Evaluation, "evaluation of a speech language model")
    content = json.loads(json.dumps(asdict(evaluation), default=str, allow_nan=False))
    jsonschema.validate(content, schema)
    write_text_atomic(out / "evaluation.schema.json", json.dumps(schema, indent=1) + "\n")
    write_text_atomic(out / "evaluation.json", json.dumps(content, indent=1) + "\n")
    write_text_atomic(out / "evaluation.md", markdown(evaluation))
    write_text_atomic(out / "evaluation.html", html)


def show(evaluation: Evaluation, console: Console) -> None:
    """The table in the terminal, and what is not in it."""
    tables = [(f"{evaluation.suite}, protocol {evaluation.protocol}", HEADER, rows(evaluation))]
    lost = uncounted(evaluation)
    if lost:
        tables.append(("not in the numbers", ["task", "reason", "items", "which"], lost))
    for title, header, body in tables:
        table = Table(*header, title=title)
        for row in body:
            table.add_row(*map(escape, row))
        console.print(table)


def _chosen(tasks: dict[str, Task], only: Sequence[str]) -> dict[str, Task]:
    unknown = sorted(set(only) - set(tasks))
    if unknown:
        raise ValueError(f"--only names {', '.join(unknown)}; the suite has {', '.join(tasks)}")
    return {name: task for name, task in tasks.items() if not only or name in only}


def _remember(out: Path, roles: dict[str, str], hashes: dict[str, str]) -> None:
    """What was evaluated, for scoring again; parts of other tasks of an earlier run stay."""
    before = json.loads((out / "parts.json").read_text()) if (out / "parts.json").is_file() else {"at": {}, "hash": {}}
    now = {"at": {**before["at"], **roles}, "hash": {**before["hash"], **hashes}}
    write_text_atomic(out / "parts.json", canonical(now, indent=1) + "\n")


def _saved(out: Path) -> SavedParts:
    if not (out / "parts.json").is_file():
        raise ValueError(f"{out} has no records to score again; run without --rescore first")
    return SavedParts(json.loads((out / "parts.json").read_text())["hash"])


def _described(out: Path, hashes: dict[str, str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Models and judges, by part."""
    places = json.loads((out / "parts.json").read_text())["at"]
    models = {
        MODEL_OF.get(part, part): {"at": places.get(MODEL_OF.get(part, part), ""), "hash": value}
        for part, value in hashes.items()
        if not is_judge(part)
    }
    return models, {part: value for part, value in hashes.items() if is_judge(part)}


def main(args: list[str] | None = None) -> None:
    """Parse, evaluate; exits with 2 for an argument that is wrong, with 1 for items or a model that are."""
    hide_secrets()
    transformers_logging.set_verbosity_error()
    parser = build_parser()
    config = parser.parse_args(None if args is None else list(map(str, args)))
    try:
        evaluate(parser.instantiate(config))
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
