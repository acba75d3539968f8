"""The command line of a job that any number of processes share: its YAML, its rank, and how an argument is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import ArgumentParser

from speechlm.ranks import Rank, find_rank

Errors = type[Exception] | tuple[type[Exception], ...]


def job_parser(
    verb: str, doc: str | None, usage: str = "--config FILE [--config FILE ...] [--section.key value ...]"
) -> ArgumentParser:
    """A parser of `--config`, `--rank` and `--world_size`, for more arguments, constructors as their schema.

    Args:
        verb: as it is called, speechlm.pack.
        doc: of its module; the first line describes it.
        usage: its arguments in short.
    """
    parser = ArgumentParser(
        prog=f"python -m {verb}",
        usage=f"%(prog)s {usage}",
        description=(doc or "").splitlines()[0],
        parser_mode="omegaconf+",
    )
    parser.add_argument("--config", action="config", help="YAML file of the arguments below")
    parser.add_argument("--rank", type=int | None, help="this process, from 0, where neither torchrun nor Slurm says")
    parser.add_argument("--world_size", type=int | None, help="number of processes")
    return parser


class JobCLI:
    """What a command line says, and what is refused of it, with exit code 2 and the argument's name.

    Args:
        parser: of `job_parser`.
        args: instead of the process's own.
    """

    def __init__(self, parser: ArgumentParser, args: list[str] | None = None) -> None:
        self.parser = parser
        self.config = parser.parse_args(None if args is None else list(map(str, args)))

    def find_rank(self) -> Rank:
        """This process among those that share the job."""
        with self.refusing("rank"):
            return find_rank(self.config.rank, self.config.world_size)

    @contextmanager
    def refusing(self, argument: str, kinds: Errors = (ValueError, OSError)) -> Iterator[None]:
        """What is wrong with an argument ends the process with exit code 2 and the argument's name."""
        try:
            yield
        except kinds as error:
            self.parser.error(f"argument {argument}: {error}")


def require_folder_name(name: str) -> None:
    """Refuse a name that leads out of the folder it is to be made in.

    Raises:
        ValueError: it does.
    """
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"{name!r} can not be the name of a folder")
