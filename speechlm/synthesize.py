"""Text to interleaved documents, or chats to spoken dialogues: `python -m speechlm.synthesize --config configs/synthesize/x.yaml`

No waveform is ever rendered.

Any number of processes share the work. Whatever was interrupted, the identical command goes on; see docs/synthesize.md.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from callbacks.synthesis_progress import SynthesisProgress
from datamodules.chats import ChatSettings
from datamodules.data_card import DataCard
from datamodules.interleaving import InterleaveJob, InterleaveSettings, TextSource, accounts
from datamodules.sealed import write_sealed
from datamodules.speaking_chats import ChatJob
from speechlm.devices import choose_device
from speechlm.engines.base import Sampling, Target
from speechlm.engines.open import EngineSettings, model_hash
from speechlm.engines.replicas import NoServer
from speechlm.engines.sglang import BadAnswer
from speechlm.hidden_secrets import hide_secrets
from speechlm.job_cli import JobCLI, job_parser, require_folder_name
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import Vocab


def build_parser() -> ArgumentParser:
    """The command line; constructors are its schema."""
    parser = job_parser("speechlm.synthesize", __doc__)
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
    return parser


class SynthesizeCLI(JobCLI):
    """Makes documents or dialogues of the texts that a command line names."""

    def run(self) -> None:
        """Make this process's share, and the summary of every source that is complete with it."""
        rank = self.find_rank()
        with self.refusing("interleave"):
            built = self.parser.instantiate(self.config)
        jobs, vocab, tokenizer = self._jobs(built)
        writer = tokenizer.writer("tts", built.interleave.template, vocab)
        target = Target(vocab.speech_offset, vocab.num_speech, writer.closing)
        with self.refusing("engine"):
            engine = built.engine.open(built.model, target, str(choose_device(built.device, rank.local_rank)))
        for name, job in jobs.items():
            progress = SynthesisProgress(f"{rank.title} {name}".strip(), built.target_ids)
            with self.refusing("sources", ValueError):
                job.run(engine, rank.rank, rank.world_size, progress)
            print(progress)
            print(self._report(name, job))

    def _jobs(self, built: Any) -> tuple[dict[str, InterleaveJob], Vocab, TextTokenizer]:
        """Everything that can be refused before anything is made."""
        with self.refusing("model"):
            folder = Path(built.model)
            vocab, tokenizer = Vocab.load(folder / "vocab.json"), TextTokenizer(folder)
            model = model_hash(folder)
        jobs = {}
        for name, source in built.sources.items():
            with self.refusing(f"sources.{name}"):
                require_folder_name(name)
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


def main(args: list[str] | None = None) -> None:
    """Parse, build, synthesize; exit code 2 for an argument that is wrong, 1 where no engine answers any more."""
    hide_secrets()
    try:
        SynthesizeCLI(build_parser(), args).run()
    except (NoServer, BadAnswer) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
