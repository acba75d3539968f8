"""Text to interleaved documents, or chats to spoken dialogues: `python -m speechlm.synthesize --config configs/synthesize/x.yaml`

No waveform is ever rendered.

Any number of processes share the work. Whatever was interrupted, the identical command goes on; see docs/synthesize.md.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from callbacks.synthesis_progress import SynthesisProgress
from datamodules.chats import ChatSettings
from datamodules.data_card import DataCard
from datamodules.interleaving import InterleaveJob, InterleaveSettings, TextSource, accounts, text_to_token_writer
from datamodules.sealed import write_sealed
from datamodules.speaking_chats import ChatJob
from speechlm.engines.base import Sampling, Target
from speechlm.engines.open import EngineSettings, model_hash
from speechlm.engines.replicas import NoServer
from speechlm.engines.sglang import BadAnswer
from speechlm.hidden_secrets import hide_secrets
from speechlm.ranks import find_rank
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import Vocab


def build_parser() -> ArgumentParser:
    """The command line; constructors are its schema."""
    parser = ArgumentParser(
        prog="python -m speechlm.synthesize",
        usage="%(prog)s --config FILE [--config FILE ...] [--section.key value ...]",
        description=(__doc__ or "").splitlines()[0],
        parser_mode="omegaconf+",
    )
    parser.add_argument("--config", action="config", help="YAML file of the arguments below")
    parser.add_argument("--model", type=str, required=True, help="folder of an exported text-to-token model")
    parser.add_argument("--out", type=str, required=True, help="folder for the documents, one folder in it per source")
    parser.add_argument("--sources", type=dict[str, TextSource], required=True, help="text corpora by name")
    parser.add_class_arguments(Clock, "clock")
    parser.add_class_arguments(InterleaveSettings, "interleave")
    parser.add_argument("--chat", type=ChatSettings | None, help="the sources are chats, which become spoken dialogues")
    parser.add_class_arguments(Sampling, "sampling")
    parser.add_argument("--engine", type=EngineSettings, required=True, help="what generates, by class_path")
    parser.add_argument("--target_ids", type=float, default=0.0, help="speech ids wanted in all, to say what they cost")
    parser.add_argument("--device", type=str, default="auto", help="of an engine in this process")
    parser.add_argument("--rank", type=int | None, help="this process, from 0, where neither torchrun nor Slurm says")
    parser.add_argument("--world_size", type=int | None, help="number of processes")
    return parser


class SynthesizeCLI:
    """What a command line says, and what is refused of it, with exit code 2 and the argument's name.

    Args:
        args: instead of the process's own.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        self.parser = build_parser()
        self.config = self.parser.parse_args(None if args is None else list(map(str, args)))

    def run(self) -> None:
        """Make this process's share, and the summary of every source that is complete with it."""
        with self._refusing("rank"):
            rank = find_rank(self.config.rank, self.config.world_size)
        with self._refusing("interleave"):
            built = self.parser.instantiate(self.config)
        jobs, vocab, tokenizer = self._jobs(built)
        writer = text_to_token_writer(built.interleave.template, vocab, tokenizer)
        target = Target(vocab.speech_offset, vocab.num_speech, writer.closing)
        with self._refusing("engine"):
            engine = built.engine.open(built.model, target, device_of(built.device, rank.local_rank))
        title = f"rank {rank.rank} of {rank.world_size}" if rank.world_size > 1 else ""
        for name, job in jobs.items():
            progress = SynthesisProgress(f"{title} {name}".strip(), built.target_ids)
            with self._refusing("sources", ValueError):
                job.run(engine, rank.rank, rank.world_size, progress)
            print(progress)
            print(self._report(name, job))

    def _jobs(self, built: Any) -> tuple[dict[str, InterleaveJob], Vocab, TextTokenizer]:
        """Everything that can be refused before anything is made."""
        with self._refusing("model"):
            folder = Path(built.model)
            vocab, tokenizer = Vocab.load(folder / "vocab.json"), TextTokenizer(folder)
            model = model_hash(folder)
        jobs = {}
        for name, source in built.sources.items():
            with self._refusing(f"sources.{name}"):
                if Path(name).name != name or name.startswith("."):
                    raise ValueError(f"{name!r} can not be the name of a folder")
                sampling = replace(built.sampling, seed=built.interleave.seed)
                out, rate_hz = Path(built.out) / name, float(built.clock.token_rate_hz)
                parts = (source, built.interleave, vocab, tokenizer, out, rate_hz, sampling, model)
                jobs[name] = InterleaveJob(*parts) if built.chat is None else ChatJob(built.chat, *parts)
        return jobs, vocab, tokenizer

    def _report(self, name: str, job: InterleaveJob) -> str:
        report = job.report()
        if report is None:
            return f"{name}: shards are still to be made, by other processes or another start"
        write_sealed(job.folder / "summary.json", report)
        counts = report["counts"]
        share = counts["spoken_text_ids"] / max(1, counts["spoken_text_ids"] + counts["text_ids"])
        documents, spans, units = accounts(counts, report["reasons"], job.unit)
        DataCard(
            "Spoken dialogues"
            if isinstance(job, ChatJob)
            else f"Interleaved documents, {share:.0%} of the text spoken",
            "python -m speechlm.synthesize",
            tuple(job.source.paths),
            languages=(job.source.language,) if job.source.language else (),
            counts={"documents": documents.out, "text_ids": counts["text_ids"], "speech_ids": counts["speech_ids"]},
            skipped={
                **documents.skipped,
                **{f"span, {reason}": count for reason, count in spans.skipped.items()},
                **{f"{job.unit}, {reason}": count for reason, count in units.skipped.items()},
                **({"replies that were shortened": counts["shortened"]} if counts["shortened"] else {}),
            },
            hashes={"vocabulary": job.vocab.hash, "text_to_token_model": job.making.provenance["model"]},
        ).write(job.folder)
        return (
            f"{name}: {documents}; {spans}; {units}; {counts['text_ids']} text ids, {counts['speech_ids']} speech ids, "
            f"{share:.1%} of the text spoken"
        )

    @contextmanager
    def _refusing(
        self, argument: str, kinds: type[Exception] | tuple[type[Exception], ...] = (ValueError, OSError)
    ) -> Iterator[None]:
        """What is wrong with an argument ends the process with exit code 2 and the argument's name."""
        try:
            yield
        except kinds as error:
            self.parser.error(f"argument {argument}: {error}")


def device_of(name: str, local_rank: int) -> str:
    """The device of this process: its own GPU where there is one."""
    if name != "auto":
        return name
    return f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def main(args: list[str] | None = None) -> None:
    """Parse, build, synthesize; exit code 2 for an argument that is wrong, 1 where no engine answers any more."""
    hide_secrets()
    try:
        SynthesizeCLI(args).run()
    except (NoServer, BadAnswer) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
