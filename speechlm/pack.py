"""Corpora to packed rows: `python -m speechlm.pack --config configs/pack/<name>.yaml [--rank 0 --world_size 8]`.

Any number of processes share the work. Whatever was interrupted, the identical command goes on; see docs/pack.md.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from callbacks.pack_progress import PackProgress
from datamodules.data_card import DataCard
from datamodules.interleaved import read_making
from datamodules.packing import PackJob, PackSettings, PackSource, accounts
from datamodules.token_folder import TokenFolder
from speechlm.hidden_secrets import hide_secrets
from speechlm.job_cli import JobCLI, job_parser, require_folder_name
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.vocab import Vocab


def build_parser() -> ArgumentParser:
    """The command line; constructors are its schema."""
    parser = job_parser("speechlm.pack", __doc__)
    parser.add_argument("--out", type=str, required=True, help="folder for the rows, one folder in it for each source")
    parser.add_argument("--sources", type=dict[str, PackSource], required=True, help="corpora by name")
    parser.add_argument("--text_tokenizer", type=str, required=True, help="Hugging Face folder or name")
    parser.add_argument(
        "--vocab", type=str | None, help="vocab.json of the model; made of the next two where not given"
    )
    parser.add_argument(
        "--num_text", type=int | None, help="rows of the model's embedding; null: size of the tokenizer"
    )
    parser.add_argument("--num_speech", type=int | None, help="speech codes; null: as the first source of speech says")
    parser.add_class_arguments(PackSettings, "packing")
    return parser


class PackCLI(JobCLI):
    """Makes rows of the corpora that a command line names."""

    def run(self) -> None:
        """Make this process's share of the rows, and the index of every source that is complete with them."""
        rank = self.find_rank()
        with self.refusing("packing"):
            built = self.parser.instantiate(self.config)
        jobs = self._jobs(built)
        mine = [
            (job, unit)
            for number, (job, unit) in enumerate((job, unit) for job in jobs for unit in range(len(job.units)))
            if number % rank.world_size == rank.rank
        ]
        progress = PackProgress(sum(_bytes(job, unit) for job, unit in mine), rank.title)
        with self.refusing("sources", ValueError):
            for job, unit in mine:
                if job.is_done(unit):
                    progress.kept(_bytes(job, unit))
                else:
                    job.make(unit, progress)
            print(progress)
            for job in jobs:
                print(report(job))

    def _jobs(self, built: Any) -> list[PackJob]:
        """Everything that can be refused before anything is made."""
        out = Path(built.out)
        with self.refusing("text_tokenizer"):
            tokenizer = TextTokenizer(built.text_tokenizer)
        with self.refusing("sources"):
            for source in built.sources.values():
                source.files()
        with self.refusing("vocab"):
            vocab = choose_vocab(built, tokenizer)
            save_vocab(vocab, out / "vocab.json")
        jobs = []
        for name, source in built.sources.items():
            with self.refusing(f"sources.{name}"):
                require_folder_name(name)
                jobs.append(PackJob(name, source, built.packing, vocab, tokenizer, out / name))
        return jobs


def choose_vocab(config: Any, tokenizer: TextTokenizer) -> Vocab:
    """The vocabulary that is named, or one made of the text tokenizer and what the speech was made with.

    Raises:
        ValueError: it is of another text tokenizer, or nothing says how many speech codes there are.
    """
    if config.vocab is not None:
        vocab = Vocab.load(config.vocab)
        if vocab.text_tokenizer and vocab.text_tokenizer != tokenizer.fingerprint:
            raise ValueError(
                f"{config.vocab} is of the text tokenizer {vocab.text_tokenizer}, "
                f"{config.text_tokenizer} is {tokenizer.fingerprint}"
            )
        return vocab
    num_text = config.num_text or tokenizer.size
    if num_text < tokenizer.size:
        raise ValueError(f"num_text {num_text} is less than the {tokenizer.size} ids of {config.text_tokenizer}")
    codes, made_by = speech_half(config.sources.values())
    num_speech = config.num_speech or codes
    if num_speech < 1:
        raise ValueError("nothing says how many speech codes there are: give --vocab, or --num_speech")
    return Vocab(num_text, num_speech, text_tokenizer=tokenizer.fingerprint, speech_tokenizer=made_by)


def speech_half(sources: Iterable[PackSource]) -> tuple[int, str]:
    """Number of codes and speech tokenizer of the first source that says so; 0 and "" where none does."""
    for source in sources:
        for folder in map(TokenFolder.find, source.paths):
            if folder is not None:
                return folder.header.num_codes, folder.header.tokenizer_hash
        for file in source.files():
            if file.name.endswith(".safetensors"):
                return 0, read_making(file).speech_tokenizer
    return 0, ""


def save_vocab(vocab: Vocab, path: Path) -> None:
    """Put the vocabulary beside the rows.

    Raises:
        ValueError: another one is there.
    """
    if path.exists():
        vocab.require(Vocab.load(path).hash, str(path))
    else:
        vocab.save(path)


def report(job: PackJob) -> str:
    """What a source came to, or what is still to be made of it."""
    index = job.finish()
    if index is None:
        missing = sum(not job.is_done(unit) for unit in range(len(job.units)))
        return (
            f"{job.name}: {missing} of {len(job.units)} files are still to be made, by other processes or another start"
        )
    counts = index["counts"]
    rows = sum(entry["rows"] for entry in index["files"])
    DataCard(
        f"Rows of {index['row_len']} ids, {job.source.kind}",
        "python -m speechlm.pack",
        tuple(job.source.paths),
        languages=(job.source.language,) if job.source.language else (),
        counts={"documents": counts["documents"], "ids": counts["ids_out"], "rows": rows},
        skipped=counts["skipped"],
        hashes={"vocabulary": job.vocab.hash},
    ).write(job.folder)
    return (
        f"{job.name}: {accounts(counts)[0]}; {counts['ids_out']} ids in {rows} rows of {index['row_len']}, "
        f"{counts['padding'] / max(1, rows * index['row_len']):.3%} padding"
    )


def _bytes(job: PackJob, unit: int) -> int:
    return sum(file.stat().st_size for file in job.units[unit])


def main(args: list[str] | None = None) -> None:
    """Parse, build, pack; exit code 2 for an argument that is wrong, 1 for a corpus that is."""
    hide_secrets()
    try:
        PackCLI(build_parser(), args).run()
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
