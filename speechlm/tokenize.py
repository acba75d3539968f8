"""Cuts to cuts with speech tokens: `python -m speechlm.tokenize --config configs/tokenize/<name>.yaml [--rank 0 --world_size 8]`.

Any number of processes share the work. Whatever was interrupted, the identical command goes on; see docs/tokenize.md.
"""

import sys

import torch
from jsonargparse import ArgumentParser

from callbacks.work_progress import WorkProgress
from datamodules.data_card import DataCard
from datamodules.token_folder import DamagedShard, TokenFolder, Totals, start_folder
from datamodules.token_plan import count_manifests
from datamodules.token_shards import write_totals
from datamodules.tokenizing import BulkTokenizer, Making, header_of
from speechlm.devices import choose_device
from speechlm.hidden_secrets import hide_secrets
from speechlm.job_cli import JobCLI, job_parser
from speechlm.tokenizers import build_tokenizer
from speechlm.tokens.tokenizer import Tokenizer


def build_parser() -> ArgumentParser:
    """The command line; constructors are its schema."""
    parser = job_parser("speechlm.tokenize", __doc__)
    parser.add_argument("--cuts", type=list[str], required=True, help="cut manifests, folders of them, Shar folders")
    parser.add_argument(
        "--out", type=str, required=True, help="folder for the tokens; an interrupted one is gone on with"
    )
    parser.add_subclass_arguments(Tokenizer, "tokenizer", required=True, help="class and settings of the tokenizer")
    parser.add_class_arguments(Making, "making")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--plan_only", type=bool, default=False, help="count the manifests into `out` and make nothing")
    return parser


class TokenizeCLI(JobCLI):
    """Makes tokens of the cuts that a command line names."""

    def run(self) -> None:
        """Make this process's share of the tokens, and the summary where it was the last."""
        rank = self.find_rank()
        with self.refusing("device"):
            device = choose_device(self.config.device, rank.local_rank)
        folder, tokenizer, making = self._start(device)
        if self.config.plan_only:
            print(f"{folder.header.num_cuts} cuts are to become {folder.header.num_shards} shards in {folder.path}")
            return
        name = rank.title
        length = sum(map(folder.header.shard_length, range(rank.rank, folder.header.num_shards, rank.world_size)))
        with WorkProgress(length, name, bar=None if rank.world_size == 1 else False) as watcher:
            work = BulkTokenizer(folder, tokenizer, making, device, watcher, rank.rank, rank.world_size)
            with self.refusing("cuts", ValueError):
                totals = work.run()
        print(f"{name + ': ' if name else ''}{totals}")
        print(f"{watcher.times_real_time:.0f} x real time, {watcher.padding_share:.1%} padding")
        finish(folder)

    def _start(self, device: torch.device) -> tuple[TokenFolder, Tokenizer, Making]:
        """Everything that can be refused before anything is made, what is cheap to find out first."""
        with self.refusing("making"):
            making = Making(**self.config.making)
        with self.refusing("out"):
            begun = TokenFolder.find(self.config.out)
        with self.refusing("cuts"):
            manifests = count_manifests(self.config.cuts, begun.header.manifests if begun else ())
        with self.refusing("tokenizer"):
            tokenizer = build_tokenizer(self.parser, self.config)
            tokenizer.move_to(device)
        if making.precision == "float32":  # convolutions on a GPU would otherwise round to 10 bits
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        with self.refusing("out"):
            folder = start_folder(self.config.out, header_of(manifests, tokenizer, making))
        return folder, tokenizer, making


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
        TokenizeCLI(build_parser(), args).run()
    except (RuntimeError, DamagedShard) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
