"""What everything around the engine costs when a corpus is made into interleaved documents, and whether memory stays flat.

    python benchmarks/plan_spans.py [--documents 2000] [--words 500] [--texts FILE.jsonl] [--tokenizer FOLDER]
    python benchmarks/plan_spans.py --documents 1000000 --words 40

The whole path of `python -m speechlm.synthesize` over a file of documents, with an engine that takes no time: it answers out of
order with ready ids, as many as reading has (3.8 for each id of text). Documents are sentences of `--texts` put together to
log-normal lengths. What a part costs is seconds of one core, said per generated speech id and as a share of the time that an id
takes to generate at `--rate`; the aim is under 2 % for planning and assembling. Text is encoded by the tokenizer's own library:
its share is that library's, and is listed apart. The shards are written, checksummed and then deleted.
"""

import argparse
import contextlib
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.documents import Raw
from datamodules.interleaving import InterleaveJob, InterleaveSettings, TextSource
from datamodules.speaking import OpenShard, Shard, Work
from speechlm.engines.base import Generation, Prompt, Sampling, Target
from speechlm.provenance import short_commit
from speechlm.spoken_text import spoken
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.interleave import Segment
from speechlm.tokens.vocab import Vocab

ROOT = Path(__file__).parents[1]
SPEECH_IDS = 16_384
IDS_PER_TEXT_ID = 3.8 / 1.3  # of reading at 12.5 ids a second
MARKS = (0.1, 0.5, 1.0)  # of the documents, where memory is looked at


class Stopwatch:
    """Processor seconds by part; a part inside another is not counted twice."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._open: list[list[Any]] = []

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count the block as `part`."""
        begun, inner = time.thread_time(), [part, 0.0]
        self._open.append(inner)
        try:
            yield
        finally:
            self._open.pop()
            took = time.thread_time() - begun
            self.seconds[part] += took - inner[1]
            if self._open:
                self._open[-1][1] += took


class TimedTokenizer(TextTokenizer):
    """Says how long it takes."""

    def __init__(self, path: str, watch: Stopwatch) -> None:
        super().__init__(path)
        self.watch = watch

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `TextTokenizer.encode`."""
        with self.watch("encode text"):
            return super().encode(texts)


class TimedJob(InterleaveJob):
    """The job itself, part by part; a shard that is written is deleted again."""

    watch: Stopwatch

    def documents_of(self, file: Path) -> Iterator[Raw]:
        """See `InterleaveJob.documents_of`."""
        documents = super().documents_of(file)
        while True:
            with self.watch("read"):
                raw = next(documents, None)
            if raw is None:
                return
            yield raw

    def spans_of(self, raw: Raw) -> list[Segment]:
        """See `InterleaveJob.spans_of`."""
        with self.watch("plan"):
            return super().spans_of(raw)

    def prompt(self, raw: Raw, segment: Segment) -> tuple[np.ndarray, int]:
        """See `InterleaveJob.prompt`."""
        with self.watch("spoken form, prompt"):
            return super().prompt(raw, segment)

    def assembled(self, work: Work) -> Any:
        """See `InterleaveJob.assembled`."""
        with self.watch("assemble"):
            return super().assembled(work)

    def write(self, shard: Shard, made: OpenShard) -> None:
        """See `InterleaveJob.write`."""
        with self.watch("write shards"):
            super().write(shard, made)
        self.path(shard).unlink()


class InstantEngine:
    """Answers with ready ids, out of order, while `held` prompts wait."""

    max_length = 4096

    def __init__(self, target: Target, watch: Stopwatch, held: int = 256) -> None:
        self.target, self.watch, self.held = target, watch, held
        draw = np.random.default_rng(0)
        ranks = (target.count ** draw.random(100_000)).astype(np.int64) - 1  # some ids often, as silence is
        self.ready = (target.first + ranks).tolist()
        self.draw, self.ids = random.Random(0), 0

    def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[Generation]:
        """See `Engine.generate`."""
        waiting, work = list[Prompt](), iter(prompts)
        while waiting := waiting + list(islice(work, self.held - len(waiting))):
            with self.watch("engine"):
                index = self.draw.randrange(len(waiting))
                waiting[index], waiting[-1] = waiting[-1], waiting[index]
                made = self._speak(waiting.pop())
            yield made

    def _speak(self, prompt: Prompt) -> Generation:
        count = max(prompt.min_new, round(IDS_PER_TEXT_ID * prompt.min_new))  # min_new is one for each id of text
        start = self.draw.randrange(len(self.ready) - count)
        self.ids += count
        return Generation(prompt.key, tuple(self.ready[start : start + count]), "stop")


class Memory:
    """Resident memory as documents get done."""

    def __init__(self, documents: int) -> None:
        self.marks = [int(share * documents) for share in MARKS]
        self.documents = 0
        self.mib: dict[int, float] = {}

    def spoke(self, spans: int, ids: int) -> None:
        """See `Watcher`."""

    def shard_done(self, documents: int, kept: bool) -> None:
        """See `Watcher`."""
        self.documents += documents
        while self.marks and self.documents >= self.marks[0]:
            self.mib[self.marks.pop(0)] = round(resident_mib(), 1)
            print(f"{self.documents} documents, {resident_mib():.1f} MiB", flush=True)


def resident_mib() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def write_corpus(path: Path, texts: Path, documents: int, words: int) -> int:
    """Documents of sentences of `texts`, log-normal in length with the mean `words` -> characters."""
    lines = texts.read_text(encoding="utf-8").splitlines()
    sentences = [s + "." for line in lines for s in json.loads(line)["text"].split(". ") if s.strip()]
    draw, characters = random.Random(0), 0
    with open(path, "w", encoding="utf-8") as file:
        for number in range(documents):
            wanted, said = draw.lognormvariate(np.log(words) - 0.32, 0.8), list[str]()
            while wanted > 0:
                said.append(draw.choice(sentences))
                wanted -= said[-1].count(" ") + 1
            text = " ".join(said)
            characters += len(text)
            file.write(json.dumps({"id": f"document-{number}", "text": text}, ensure_ascii=False) + "\n")
    return characters


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run over a corpus in `folder`."""
    characters = write_corpus(folder / "a.jsonl", Path(options.texts), options.documents, options.words)
    watch = Stopwatch()
    tokenizer = TimedTokenizer(options.tokenizer, watch)
    vocab = Vocab(tokenizer.size, SPEECH_IDS, text_tokenizer=tokenizer.fingerprint, speech_tokenizer="benchmark")
    settings = InterleaveSettings(shard_documents=options.shard_documents)
    job = TimedJob(
        TextSource([str(folder / "a.jsonl")]), settings, vocab, tokenizer, folder / "out", 12.5, Sampling(), "none"
    )
    job.watch = watch
    engine = InstantEngine(Target(vocab.speech_offset, SPEECH_IDS, job.writer.closing), watch)
    spoken("1", job.source.language)  # the grammar is read, which takes seconds, once
    memory, before = Memory(options.documents), time.process_time()
    with watch("queue, checks"):
        job.run(engine, 0, 1, memory)
    return {
        "documents": memory.documents,
        "characters": characters,
        "speech ids": engine.ids,
        "cpu seconds": round(time.process_time() - before, 2),
        "MiB after documents": memory.mib,
        **shares(watch.seconds, engine.ids, options.rate),
    }


def shares(seconds: Counter[str], ids: int, rate: float) -> dict[str, Any]:
    """Microseconds per speech id of every part but the engine, and shares of the time an id takes to generate."""
    parts = {name: spent / ids * 1e6 for name, spent in sorted(seconds.items()) if name != "engine"}
    share = {name: micro * rate / 1e6 for name, micro in parts.items()}
    ours = sum(value for name, value in share.items() if name != "encode text")
    return {
        "microseconds per speech id": {name: round(value, 4) for name, value in parts.items()},
        f"share of generation at {rate:g} ids/s": {name: f"{value:.3%}" for name, value in share.items()},
        "planning and assembling": f"{share['plan'] + share['assemble']:.3%}",
        "all but encoding text": f"{ours:.3%}",
        "all": f"{sum(share.values()):.3%}",
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--words", type=int, default=500, help="mean of a document")
    parser.add_argument("--shard_documents", type=int, default=1000)
    parser.add_argument("--texts", default=str(ROOT / "assets/tour-texts/train.jsonl"), help="JSON lines with `text`")
    parser.add_argument("--tokenizer", default=str(ROOT / "assets/whisper-nano-en"))
    parser.add_argument("--rate", type=float, default=25_000, help="speech ids per second of the engine")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # all work in the one thread whose time is taken
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    print(json.dumps({**vars(options), "commit": short_commit(), **result}, indent=1))


if __name__ == "__main__":
    main()
