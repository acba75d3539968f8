"""Send a job to Slurm: `python -m speechlm.submit --config configs/speech_lm/glm4_9b.yaml --nodes 8 --gpus-per-node 8`.

Reads the config, so that what is wrong in it is refused now and not after hours in the queue; fills in slurm/<verb>.sbatch, puts
it into the run folder, shows it and submits it. The identical command goes on with a run. See docs/cluster.md.
"""

import argparse
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from speechlm.cluster.batch_script import Request, fill, settings_of
from speechlm.cluster.slurm import NoSlurm, running, submit
from speechlm.files import write_text_atomic
from speechlm.hidden_secrets import hide_secrets
from speechlm.provenance import redact, redact_arguments
from speechlm.start import shipped

VERBS = ("fit", "tokenize", "synthesize")


@dataclass(frozen=True)
class Work:
    """What a verb's config says of a job.

    Args:
        name: of the job.
        folder: where the script and the logs go.
        variables: of the environment, which the verb's template reads.
    """

    name: str
    folder: Path
    variables: dict[str, str]


def build_parser() -> argparse.ArgumentParser:
    """The command line; what it does not know goes to the verb."""
    parser = argparse.ArgumentParser(
        prog="python -m speechlm.submit",
        usage="%(prog)s --config FILE [--nodes N] [--time T] [...] [arguments of the verb]",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("--verb", choices=VERBS, default="fit", help="what the job runs (default: fit)")
    parser.add_argument("--config", action="append", required=True, help="of the verb; several are stacked")
    parser.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    parser.add_argument("--gpus-per-node", type=int, help="0 for a job on CPUs (default: 8; of an array's task: 1)")
    parser.add_argument("--processes-per-node", type=int, help="default: one per GPU")
    parser.add_argument("--cpus-per-process", type=int, help="default: what the template says")
    parser.add_argument("--memory", help="of a node, such as 480G (default: what the template or the cluster says)")
    parser.add_argument("--time", default="24:00:00", help="limit: hours:minutes:seconds, minutes, or days-hours")
    requeue = "go on by itself after the limit or a pre-emption (default: arrays do)"
    parser.add_argument("--requeue", action=argparse.BooleanOptionalAction, help=requeue)
    parser.add_argument(
        "--save-sec", type=int, default=180, help="told to save so long before the limit (default: 180)"
    )
    parser.add_argument("--array", help="tasks of an array: 64, or 64%%8 for at most 8 at a time")
    for name in ("partition", "account", "qos"):
        parser.add_argument(f"--{name}", help="as sbatch's")
    parser.add_argument("--sbatch", action="append", default=[], help="any other option: --sbatch=--constraint=h100")
    parser.add_argument("--doctor", action="store_true", help="look at every node first; a broken one ends the job")
    parser.add_argument("--folder", help="for script and logs (default: the run's; of an array runs/<verb>-<out>)")
    parser.add_argument("--python", default=sys.executable, help="interpreter on the nodes (default: this one)")
    parser.add_argument("--template", help="another batch script to fill in than slurm/<verb>.sbatch")
    parser.add_argument("--dry-run", action="store_true", help="write and show the script, submit nothing")
    return parser


class SubmitCLI:
    """A command line as a batch script in a run folder; what is wrong ends with exit code 2 and says which argument.

    Args:
        args: instead of the process's own.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        self.parser = build_parser()
        self.options, rest = self.parser.parse_known_args(args)
        self.rest = rest[1:] if rest[:1] == ["--"] else rest

    def run(self) -> str | None:
        """Write, show, submit; the job's id, None where nothing was submitted."""
        for config in self.options.config:
            if not Path(config).is_file():
                self.refuse(f"argument --config: no file at {config}")
        try:
            request = self._request()
            self._refuse_secrets()
            template = self._template()
            work = WORKS[self.options.verb](self._arguments(), request)
            script, text = self._script(request, template, work)
        except ValueError as error:
            self.refuse(str(error))
        self._write(script, text)
        print(f"{text}\n-- {script}")
        return None if self.options.dry_run else self._submit(script, work)

    def refuse(self, message: str) -> NoReturn:
        """End with exit code 2 and a message."""
        self.parser.error(message)

    def _request(self) -> Request:
        given = self.options
        is_array = given.verb != "fit"
        if given.array and not is_array:
            raise ValueError("--array: a training run is one job, not an array; arrays are for tokenize and synthesize")
        if given.doctor and is_array:
            raise ValueError("--doctor: looks at the config of a training run; leave it out for an array")
        return Request(
            nodes=given.nodes,
            gpus_per_node=given.gpus_per_node if given.gpus_per_node is not None else (1 if is_array else 8),
            processes_per_node=given.processes_per_node or (1 if given.verb == "synthesize" else None),
            cpus_per_process=given.cpus_per_process,
            memory=given.memory,
            time=given.time,
            requeue=is_array if given.requeue is None else given.requeue,
            save_sec=given.save_sec,
            partition=given.partition,
            account=given.account,
            qos=given.qos,
            array=(given.array or "1") if is_array else None,
            more=tuple(given.sbatch),
        )

    def _refuse_secrets(self) -> None:
        """What stands on a command line would stand in the script, too."""
        words = [*self.options.config, *self.rest]
        shown = [redact(word) for word in redact_arguments(words)]
        for word, plain in zip(words, shown, strict=True):
            if word != plain:
                raise ValueError(
                    f"a key on the command line would be written to the script; leave it to the environment ({plain})"
                )

    def _template(self) -> str:
        own = Path("slurm") / f"{self.options.verb}.sbatch"  # of a clone, or of a folder that speechlm.start made
        path = Path(self.options.template or (own if own.is_file() else shipped() / own))
        if not path.is_file():
            raise ValueError(f"--template: no file at {path}")
        return path.read_text(encoding="utf-8")

    def _arguments(self) -> list[str]:
        return [word for config in self.options.config for word in ("--config", config)] + self.rest

    def _script(self, request: Request, template: str, work: Work) -> tuple[Path, str]:
        """The script's place and text."""
        folder = Path(self.options.folder or work.folder).absolute() / "slurm"
        log = "%A_%a.out" if request.array else "%j.out"
        directives = request.directives(work.name, folder / log, alone=request.array is None)
        variables = {**work.variables, **({"DOCTOR": "1"} if self.options.doctor else {})}
        first, *others = self.options.config
        arguments = [first, *(word for config in others for word in ("--config", config)), *self.rest]
        python = str(Path(self.options.python).absolute()) if "/" in self.options.python else self.options.python
        return folder / f"{self.options.verb}.sbatch", fill(
            template, directives, settings_of(Path.cwd(), python, variables, arguments)
        )

    def _write(self, script: Path, text: str) -> None:
        try:
            script.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(script, text)
        except OSError as error:
            self.refuse(f"argument --folder: the script can not be written: {error}")

    def _submit(self, script: Path, work: Work) -> str:
        before = running(work.name) if self.options.verb == "fit" else []
        try:
            job = submit(script)
        except NoSlurm as error:
            self.refuse(str(error))
        waits = (
            f", which waits for the end of {', '.join(before)}: a run folder has one job at a time" if before else ""
        )
        print(f"-- submitted as job {job}{waits}")
        print(f"-- queue: squeue -j {job}   log: {shlex.quote(str(script.parent))}/{job}*.out   cancel: scancel {job}")
        return job


def _fit(arguments: list[str], request: Request) -> Work:
    from speechlm.fit import ParsedCLI, build  # Lightning takes seconds to import, and arrays need none of it

    cli = build(arguments, ParsedCLI)
    _check_step_rows(cli.plain_config, request)
    return Work(_job_name(str(cli.config.name)), cli.folder, {})


def _check_step_rows(config: dict[str, Any], request: Request) -> None:
    """The data module would refuse it, but only once the job runs."""
    data = config["data"].get("init_args") or {}
    accumulated = config["trainer"].get("accumulate_grad_batches") or 1
    if not data.get("step_rows"):
        return
    rows = request.nodes * request.processes * data["batch_rows"]
    if rows * accumulated != data["step_rows"]:
        fitting, rest = divmod(data["step_rows"], rows)
        advice = f"; --trainer.accumulate_grad_batches {fitting} fits" if not rest else ""
        raise ValueError(
            f"--nodes: {request.nodes} nodes x {request.processes} processes x {data['batch_rows']} rows x {accumulated} "
            f"accumulated are {rows * accumulated} rows a step, the config says {data['step_rows']}{advice}"
        )


def _tokenize(arguments: list[str], request: Request) -> Work:
    from speechlm.tokenize import build_parser as verb_parser

    return _array("tokenize", verb_parser().parse_args(arguments), {})


def _synthesize(arguments: list[str], request: Request) -> Work:
    from speechlm.synthesize import build_parser as verb_parser

    config = verb_parser().parse_args(arguments)
    replicas = {} if config.engine.class_path.endswith(".SGLang") else {"REPLICAS": "0"}
    return _array("synthesize", config, {"MODEL": str(config.model), **replicas})


def _array(verb: str, config: Any, variables: dict[str, str]) -> Work:
    folders = [part for part in Path(os.path.normpath(config.out)).parts[-2:] if part not in ("/", "data")]
    name = _job_name("-".join([verb, *folders]))  # data/a_tokens/train and data/b_tokens/train are two jobs
    return Work(name, Path("runs") / name, variables)


WORKS = {"fit": _fit, "tokenize": _tokenize, "synthesize": _synthesize}


def _job_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name)


def main(args: list[str] | None = None) -> None:
    """Parse, write, submit."""
    hide_secrets()
    SubmitCLI(args).run()


if __name__ == "__main__":
    main()
