"""What is asked of Slurm, and the batch script that asks it: a template of `slurm/`, header and arguments filled in."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

#: Where a template takes the settings that `speechlm.submit` writes.
MARK = "# (speechlm.submit puts its settings here)"
DIRECTIVE = "#SBATCH "
_TIME = re.compile(r"(?:(?P<days>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+))?(?::(?P<ds>\d+))?|(?P<clock>\d+(?::\d+){0,2}))")
_NAMES = re.compile(r"[A-Za-z0-9][\w.,+-]*")
_ARRAY = re.compile(r"([1-9]\d*)(?:%([1-9]\d*))?")
_MEMORY = re.compile(r"[1-9]\d*[KMGT]?")
#: Options of sbatch by name: a value, True for one that has none, False for one that is not given.
Directives = dict[str, str | bool]
_OWN = ("--job-name", "--nodes", "--time", "--array", "--output", "--open-mode", "--wrap")


@dataclass(frozen=True)
class Request:
    """What a job needs.

    Args:
        nodes: machines; of an array, of each task.
        gpus_per_node: on each of them, 0 for a job on CPUs.
        processes_per_node: as many as there are GPUs where None.
        cpus_per_process: what the template says where None.
        memory: of a node, such as "480G"; what the template says where None.
        time: limit in one of Slurm's forms: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes …
        requeue: start again, and go on, after the limit or a pre-emption.
        save_sec: seconds before the limit at which the processes are told to save.
        partition: of the cluster, or several of them, joined by commas.
        account: who pays.
        qos: quality of service.
        array: number of tasks, such as "64", or "64%8" for at most eight of them at a time.
        more: further options of sbatch, such as "--constraint=h100".

    Raises:
        ValueError: a value that no cluster could serve; it names the argument.
    """

    nodes: int = 1
    gpus_per_node: int = 8
    processes_per_node: int | None = None
    cpus_per_process: int | None = None
    memory: str | None = None
    time: str = "24:00:00"
    requeue: bool = False
    save_sec: int = 180
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    array: str | None = None
    more: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_time()
        for name in ("partition", "account", "qos"):
            value = getattr(self, name)
            if value is not None and not _NAMES.fullmatch(value):
                raise ValueError(f"--{name}: expected letters, digits and .,+-_, got {value!r}")
        if self.array is not None and not _ARRAY.fullmatch(self.array):
            raise ValueError(
                f"--array: expected a number of tasks such as 64, or 64%8 for eight at a time, got {self.array!r}"
            )
        if self.memory is not None and not _MEMORY.fullmatch(self.memory):
            raise ValueError(f"--memory: expected memory of a node such as 480G, got {self.memory!r}")
        for option in self.more:
            self._check_option(option)

    @property
    def processes(self) -> int:
        """Of a node."""
        return self.processes_per_node or self.gpus_per_node or 1

    def directives(self, job_name: str, output: Path, alone: bool = False) -> Directives:
        """Options of sbatch by name: a value, True for an option that has none, False for one that a template must not keep.

        Args:
            job_name: shown in the queue.
            output: the log; %-signs in its last part are Slurm's.
            alone: no two jobs of this name at a time.
        """
        given: dict[str, str | int | bool | None] = {
            "--job-name": job_name,
            "--nodes": self.nodes,
            "--ntasks-per-node": self.processes,
            "--gpus-per-node": self.gpus_per_node or False,
            "--cpus-per-task": self.cpus_per_process,
            "--mem": self.memory,
            "--time": self.time,
            "--partition": self.partition,
            "--account": self.account,
            "--qos": self.qos,
            "--signal": f"USR1@{self.save_sec}" if self.array is None else None,
            "--array": _array_range(self.array),
            "--output": _file_pattern(output),
            "--open-mode": "append",
            "--requeue" if self.requeue else "--no-requeue": True,
            "--dependency": "singleton" if alone else None,
        }
        for option in self.more:
            name, equals, value = option.partition("=")
            given[name] = value if equals else True
        return {
            name: value if isinstance(value, bool) else str(value) for name, value in given.items() if value is not None
        }

    def _check_counts(self) -> None:
        whole = {
            "nodes": (self.nodes, 1, 100_000),
            "gpus-per-node": (self.gpus_per_node, 0, 64),
            "processes-per-node": (self.processes, 1, 1024),
            "cpus-per-process": (self.cpus_per_process or 1, 1, 1024),
            "save-sec": (self.save_sec, 1, 65_535),
        }
        for name, (value, low, high) in whole.items():
            if not low <= value <= high:
                raise ValueError(f"--{name}: expected {low} to {high}, got {value}")
        if self.array is not None and self.nodes != 1:
            raise ValueError(
                f"--nodes: the tasks of an array are one node each, got {self.nodes}; raise --array instead"
            )

    def _check_time(self) -> None:
        seconds = seconds_of(self.time)
        if seconds < 60:
            raise ValueError(f"--time: Slurm's limits are whole minutes, got {self.time!r} = {seconds} s")
        if seconds <= self.save_sec and self.array is None:
            raise ValueError(
                f"--time: the limit, {self.time!r} = {seconds} s, must be longer than --save-sec {self.save_sec}, when the job "
                f"is told to save"
            )

    def _check_option(self, option: str) -> None:
        name = option.partition("=")[0]
        if not re.fullmatch(r"--[a-z][a-z-]*", name) or not option.isprintable():
            raise ValueError(
                f"--sbatch: expected an option of sbatch such as --sbatch=--constraint=h100, got {option!r}"
            )
        if name in _OWN:
            raise ValueError(f"--sbatch: {name} has an argument of its own here, or belongs to the script")


def seconds_of(time: str) -> int:
    """A time limit in one of Slurm's forms, in seconds.

    Raises:
        ValueError: it is in none of them.
    """
    found = _TIME.fullmatch(time)
    if not found:
        raise ValueError(f"--time: expected a limit such as 24:00:00, 90 (minutes) or 2-12 (days-hours), got {time!r}")
    if found["days"]:
        days, hours, minutes, seconds = (int(found[name] or 0) for name in ("days", "dh", "dm", "ds"))
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    parts = list(map(int, found["clock"].split(":")))
    if len(parts) == 3:
        return (parts[0] * 60 + parts[1]) * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)


def fill(template: str, directives: Directives, settings: list[str]) -> str:
    """A template's text with `directives` instead of its own of the same names, and `settings` at its mark.

    Raises:
        ValueError: the template has no mark.
    """
    lines = template.splitlines()
    if MARK not in lines:
        raise ValueError(f"--template: expected a line that reads {MARK!r}, where the settings go")
    replaced = {*directives, *(_other(name) for name in directives)}
    kept = [line for line in lines if not (line.startswith(DIRECTIVE) and _option_of(line) in replaced)]
    header = [_line(name, value) for name, value in directives.items() if value is not False]
    first = next(i for i, line in enumerate(kept) if not line.startswith("#") or line.startswith(DIRECTIVE))
    mark = kept.index(MARK)
    if mark < first:
        raise ValueError(f"--template: the line {MARK!r} must come after the lines of {DIRECTIVE.strip()}")
    return "\n".join([*kept[:first], *header, *kept[first:mark], *settings, *kept[mark + 1 :]]) + "\n"


def settings_of(folder: Path, python: str, variables: dict[str, str], arguments: list[str]) -> list[str]:
    """Lines of shell that put a script where the command was given, with these variables and arguments."""
    exports = {"PYTHON": python, **variables}
    return [
        f"cd {shlex.quote(str(folder))}",
        *(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
        "set -- " + _lines(arguments),
    ]


def _lines(arguments: list[str]) -> str:
    """Quoted for the shell, an option and its values on each line."""
    words = [("\\\n  " if word.startswith("--") else "") + shlex.quote(word) for word in arguments]
    return " ".join(words)


def _line(name: str, value: str | bool) -> str:
    return f"{DIRECTIVE}{name}" if value is True else f"{DIRECTIVE}{name}={_quoted(str(value))}"


def _other(name: str) -> str:
    """The option that an option takes the place of."""
    pairs = {"--requeue": "--no-requeue", "--no-requeue": "--requeue", "--mem": "--mem-per-cpu"}
    return pairs.get(name, name)


def _option_of(line: str) -> str:
    return re.split(r"[=\s]", line.removeprefix(DIRECTIVE).strip(), maxsplit=1)[0]


def _array_range(array: str | None) -> str | None:
    if array is None:
        return None
    found = _ARRAY.fullmatch(array)
    assert found
    return f"0-{int(found[1]) - 1}" + (f"%{found[2]}" if found[2] else "")


def _file_pattern(output: Path) -> str:
    """A path in which only its last part has Slurm's %-signs."""
    folder = str(output.parent)
    if "\\" in folder or not folder.isprintable():
        raise ValueError(
            f"--folder: Slurm can not write logs into a folder with backslashes or line breaks, got {folder!r}"
        )
    return folder.replace("%", "%%") + "/" + output.name


def _quoted(value: str) -> str:
    """A value as sbatch reads it from a script's header: it knows double quotes and backslashes, and # begins a comment."""
    if re.fullmatch(r"[\w@%+=:,./-]*", value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
