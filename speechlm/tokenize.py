"""Cuts to cuts with speech tokens: `python -m speechlm.tokenize --config configs/tokenize/<name>.yaml [--rank 0 --world_size 8]`.

Any number of processes share the work. Whatever was interrupted, the identical command goes on; see docs/tokenize.md.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jsonargparse import ArgumentParser

from callbacks.work_progress import WorkProgress
from datamodules.data_card import DataCard
from datamodules.token_folder import DamagedShard, TokenFolder, Totals, start_folder
from datamodules.token_plan import count_manifests
from datamodules.token_shards import write_totals
from datamodules.tokenizing import BulkTokenizer, Making, header_of
from speechlm.hidden_secrets import hide_secrets
from speechlm.ranks import Rank, find_rank
from speechlm.tokenizers import build_tokenizer
from speechlm.tokens.tokenizer import Tokenizer


def build_parser() -> ArgumentParser:
    """The command line; constructors are its schema."""
    parser = ArgumentParser(
        prog="python -m speechlm.tokenize",
        usage="%(prog)s --config FILE [--config FILE ...] [--section.key value ...]",
        description=(__doc__ or "").splitlines()[0],
        parser_mode="omegaconf+",
    )
    parser.add_argument("--config", action="config", help="YAML file of the arguments below")
    parser.add_argument("--cuts", type=list[str], required=True, help="cut manifests, folders of them, Shar folders")
    parser.add_argument(
        "--out", type=str, required=True, help="folder for the tokens; an interrupted one is gone on with"
    )
    parser.add_subclass_arguments(Tokenizer, "tokenizer", required=True, help="class and settings of the tokenizer")
    parser.add_class_arguments(Making, "making")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--rank", type=int | None, help="this process, from 0, where neither torchrun nor Slurm says")
    parser.add_argument("--world_size", type=int | None, help="number of processes")
    parser.add_argument("--plan_only", type=bool, default=False, help="count the manifests into `out` and make nothing")
    return parser


class TokenizeCLI:
    """What a command line says, and what is refused of it, with exit code 2 and the argument's name.

    Args:
        args: instead of the process's own.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        self.parser = build_parser()
        self.config = self.parser.parse_args(None if args is None else list(map(str, args)))

    def run(self) -> None:
        """Make this process's share of the tokens, and the summary where it was the last."""
        with self._refusing("rank"):
            rank = find_rank(self.config.rank, self.config.world_size)
        with self._refusing("device"):
            device = choose_device(self.config.device, rank)
        folder, tokenizer, making = self._start(device)
        if self.config.plan_only:
            print(f"{folder.header.num_cuts} cuts are to become {folder.header.num_shards} shards in {folder.path}")
            return
        name = f"rank {rank.rank} of {rank.world_size}" if rank.world_size > 1 else ""
        length = sum(map(folder.header.shard_length, range(rank.rank, folder.header.num_shards, rank.world_size)))
        with WorkProgress(length, name, bar=None if rank.world_size == 1 else False) as watcher:
            work = BulkTokenizer(folder, tokenizer, making, device, watcher, rank.rank, rank.world_size)
            with self._refusing("cuts", ValueError):
                totals = work.run()
        print(f"{name + ': ' if name else ''}{totals}")
        print(f"{watcher.times_real_time:.0f} x real time, {watcher.padding_share:.1%} padding")
        finish(folder)

    def _start(self, device: torch.device) -> tuple[TokenFolder, Tokenizer, Making]:
        """Everything that can be refused before anything is made, what is cheap to find out first."""
        with self._refusing("making"):
            making = Making(**self.config.making)
        with self._refusing("out"):
            begun = TokenFolder.find(self.config.out)
        with self._refusing("cuts"):
            manifests = count_manifests(self.config.cuts, begun.header.manifests if begun else ())
        with self._refusing("tokenizer"):
            tokenizer = build_tokenizer(self.parser, self.config)
            tokenizer.move_to(device)
        if making.precision == "float32":  # convolutions on a GPU would otherwise round to 10 bits
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        with self._refusing("out"):
            folder = start_folder(self.config.out, header_of(manifests, tokenizer, making))
        return folder, tokenizer, making

    @contextmanager
    def _refusing(
        self, argument: str, kinds: type[Exception] | tuple[type[Exception], ...] = (ValueError, OSError)
    ) -> Iterator[None]:
        """What is wrong with an argument ends the process with exit code 2 and the argument's name."""
        try:
            yield
        except kinds as error:
            self.parser.error(f"argument {argument}: {error}")


def choose_device(name: str, rank: Rank) -> torch.device:
    """The device of a name; "auto" is a GPU where there is one, and ranks of one machine take turns at its GPUs.

    Raises:
        ValueError: there is no such device.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if name == "cuda" and gpus:
        name = f"cuda:{rank.local_rank % gpus}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"{name!r} is no device; auto, cpu, cuda and cuda:N are") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= gpus):
        raise ValueError(f"{name!r} is not here; there are the CPU and {gpus} GPUs")
    return device


def finish(folder: TokenFolder) -> None:
    """Say what is there, and add it up where that is all."""
    missing = len(folder.missing())
    if missing:
        print(
            f"{missing} of {folder.header.num_shards} shards are still to be made, by other processes or another start"
        )
        return
    totals = write_totals(folder)
    data_card(folder, totals).write(folder.path)
    print(f"{folder.path} is complete: {totals}")


def data_card(folder: TokenFolder, totals: Totals) -> DataCard:
    """What the folder is, for people."""
    header = folder.header
    return DataCard(
        f"Speech tokens, {float(header.clock.token_rate_hz):g} a second",
        "python -m speechlm.tokenize",
        tuple(manifest.path for manifest in header.manifests),
        counts={"recordings": totals.cuts_out, "hours": totals.seconds / 3600, "tokens": totals.num_tokens},
        skipped=totals.skipped,
        hashes={"tokenizer": header.tokenizer_hash, "vocabulary": header.vocab.hash},
    )


def main(args: list[str] | None = None) -> None:
    """Parse, build, make; exit code 2 for an argument that is wrong, 1 for a corpus or a tokenizer that is."""
    hide_secrets()
    try:
        TokenizeCLI(args).run()
    except (RuntimeError, DamagedShard) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
