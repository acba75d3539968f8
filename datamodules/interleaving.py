"""Text corpora to interleaved documents: spans are planned, spoken by an engine as speech tokens, checked, and put back.

    <out>/<source>/job.json                       what the folder is made with
    <out>/<source>/00003-00012.safetensors        documents [12, 13) * shard_documents of file 3, see `datamodules.interleaved`
    <out>/<source>/00003-00012.json               written last: counts, and the checksum of the shard
    <out>/<source>/00003.json                     the file is done: how many shards it came to

Documents of many shards are at work at once, so that the engine never waits for the last span of one. A shard is written when
its last document is done; whatever was interrupted is made again from its documents, and comes out the same where the engine's
draws belong to the prompt.
"""

import hashlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.documents import Raw, Unusable, files_of, read_documents
from datamodules.interleaved import Interleaved, Making, write_interleaved
from datamodules.interleaved_folder import JOB
from datamodules.sealed import begin, read_sealed, seal_of, write_sealed
from datamodules.speaking import Flow, OpenShard, Shard, Watcher, Work
from speechlm.conservation import Account
from speechlm.engines.base import Engine, Sampling
from speechlm.engines.checks import SpeechChecks
from speechlm.spoken_text import spoken
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.interleave import Document, Segment, plan, segments
from speechlm.tokens.keyed import key_of
from speechlm.tokens.templates import Template
from speechlm.tokens.vocab import Vocab

log = logging.getLogger(__name__)

SCHEMA = 2


@dataclass(frozen=True)
class TextSource:
    """A text corpus.

    Args:
        paths: files or folders: .jsonl, .jsonl.gz, .jsonl.zst and .parquet.
        language: code such as "en": how numbers are said.
        text_field: name of the text.
        id_field: name of the document's id.
        max_documents: take so many from each file; null takes all.
    """

    paths: list[str]
    language: str = "en"
    text_field: str = "text"
    id_field: str = "id"
    max_documents: int | None = None


@dataclass(frozen=True)
class InterleaveSettings:
    """What is spoken, and when a result counts.

    Args:
        ratio: share of a document's words that is spoken.
        mean_span: mean of the Poisson distribution of span lengths, in words.
        epoch: pass over the corpus; each has spans of its own.
        seed: of plans and draws.
        tries: generations of a span before it is left as text.
        shard_documents: documents in a file of the result.
        open_shards: shards at work at once.
        max_document_chars: longer documents are cut off here; what is cut off is counted.
        checks: bounds on what is generated.
        template: how text-to-token rows are written, as the model was trained; null is the default of `tts`.
        voices: names for ``{voice}`` in the template; each document is in one of them.
    """

    ratio: float = 0.3
    mean_span: float = 10.0
    epoch: int = 0
    seed: int = 0
    tries: int = 3
    shard_documents: int = 1000
    open_shards: int = 4
    max_document_chars: int = 200_000
    checks: SpeechChecks = field(default_factory=SpeechChecks)
    template: Template | None = None
    voices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.tries, self.shard_documents, self.open_shards, self.max_document_chars) < 1:
            raise ValueError(
                f"tries, shard_documents, open_shards and max_document_chars must be at least 1, got {self.tries}, "
                f"{self.shard_documents}, {self.open_shards} and {self.max_document_chars}"
            )


class InterleaveJob:
    """One text source on its way into one folder of interleaved documents.

    Args:
        source: the corpus.
        settings: what is spoken.
        vocab: of the text-to-token model.
        tokenizer: of text, the model's own.
        folder: where shards go.
        token_rate_hz: of the speech tokens.
        sampling: how the engine draws.
        model: what tells the text-to-token model from others.

    Raises:
        FileNotFoundError: a path of the source is not there.
        ValueError: the folder was begun with something else, or the template has no end of speech.
    """

    suffix = ".safetensors"
    unit = "characters"

    def __init__(
        self,
        source: TextSource,
        settings: InterleaveSettings,
        vocab: Vocab,
        tokenizer: TextTokenizer,
        folder: Path,
        token_rate_hz: float,
        sampling: Sampling,
        model: str,
    ) -> None:
        self.source, self.settings, self.vocab, self.tokenizer = source, settings, vocab, tokenizer
        self.folder, self.sampling = folder, sampling
        self.writer = tokenizer.writer("tts", settings.template, vocab)
        self.require_voices()
        self.files = self.find_files()
        plan = {
            "schema": SCHEMA,
            "source": asdict(source),
            "settings": {k: v for k, v in asdict(settings).items() if k != "open_shards"},
            "sampling": asdict(sampling),
            "vocab_hash": vocab.hash,
            "text_tokenizer": tokenizer.fingerprint,
            "model": model,
            "files": [[str(file), file.stat().st_size] for file in self.files],
            **self.plan_of(),
        }
        self.seal = seal_of(plan)
        begin(self.folder / JOB, plan)
        self.making = Making(
            vocab.text_tokenizer or tokenizer.fingerprint,  # an export's tokenizer has the speech tokens' names besides
            vocab.speech_tokenizer,
            token_rate_hz,
            {
                "model": model,
                "vocab_hash": vocab.hash,
                "made_with": self.seal,
                "sampling": json.dumps(asdict(sampling)),
            },
        )

    def find_files(self) -> list[Path]:
        """Files of the source, in order."""
        return files_of(self.source.paths, "text")

    def plan_of(self) -> dict[str, Any]:
        """What the folder is made with besides."""
        return {}

    def require_voices(self) -> None:
        """The template and the settings agree on voices.

        Raises:
            ValueError: they do not.
        """
        if self.writer.voiced != bool(self.settings.voices):
            raise ValueError(
                f"the template has {'a' if self.writer.voiced else 'no'} {{voice}}, and `voices` is {self.settings.voices}"
            )

    # -- what is there -------------------------------------------------------------------------------------------------

    def path(self, shard: Shard) -> Path:
        """File of a shard."""
        return self.folder / f"{shard[0]:05d}-{shard[1]:05d}{self.suffix}"

    def done(self, shard: Shard) -> dict[str, Any] | None:
        """What is said of a shard that is there, whole and made as it would be made now; None where it is not."""
        try:
            commit = read_sealed(self.path(shard).with_suffix(".json"))
            data = self.path(shard).read_bytes()
        except (FileNotFoundError, ValueError):
            return None
        whole = commit["made_with"] == self.seal and commit["shard_sha256"] == hashlib.sha256(data).hexdigest()
        return commit if whole else None

    def report(self) -> dict[str, Any] | None:
        """Counts over all shards; None while some are missing."""
        total: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for number in range(len(self.files)):
            try:
                shards = read_sealed(self.folder / f"{number:05d}.json")["shards"]
            except (FileNotFoundError, ValueError):
                return None
            for index in range(shards):
                commit = self.done((number, index))
                if commit is None:
                    return None
                total += Counter(commit["counts"])
                reasons += Counter(commit["reasons"])
        counts = {name: total[name] for name in COUNTS}
        for account in accounts(counts, reasons, self.unit):
            account.require(str(self.folder))
        return {"counts": counts, "reasons": dict(sorted(reasons.items()))}

    # -- the work ------------------------------------------------------------------------------------------------------

    def run(self, engine: Engine, rank: int, world_size: int, watcher: Watcher) -> None:
        """Make this process's share of the shards that are not there."""
        flow = Flow(self, rank, world_size, watcher, engine.max_length)
        while flow.unfinished:
            for generation in engine.generate(flow.prompts(), self.sampling):
                flow.take(generation)

    def shards(self, rank: int, world_size: int) -> Iterator[tuple[Shard, list[Raw]]]:
        """This process's shards that are not there, and their documents, in order; says so where a file has ended.

        With fewer files than processes every process reads every file and takes its share of the shards.
        """
        by_file = len(self.files) >= world_size
        for number, file in enumerate(self.files):
            if by_file and number % world_size != rank:
                continue
            documents = itertools.islice(self.documents_of(file), self.source.max_documents)
            index = 0
            while part := list(itertools.islice(documents, self.settings.shard_documents)):
                if by_file or (number + index) % world_size == rank:
                    yield (number, index), part
                index += 1
            if by_file or number % world_size == rank:
                write_sealed(self.folder / f"{number:05d}.json", {"shards": index})

    @property
    def checks(self) -> SpeechChecks:
        """See `Job.checks`."""
        return self.settings.checks

    @property
    def tries(self) -> int:
        """See `Job.tries`."""
        return self.settings.tries

    @property
    def open_shards(self) -> int:
        """See `Job.open_shards`."""
        return self.settings.open_shards

    def documents_of(self, file: Path) -> Iterator[Raw]:
        """Documents of a file, in order."""
        for raw in read_documents(file, "text", self.source.text_field, self.source.id_field):
            room = self.settings.max_document_chars
            raw.left_out["beyond max_document_chars"] = max(0, len(raw.text) - room)
            raw.text = raw.text[:room]
            raw.id = raw.id.replace("\0", "\ufffd")
            raw.voice = one_of(self.settings.voices, raw.id, self.settings.seed)
            yield raw

    def spans_of(self, raw: Raw) -> list[Segment]:
        """A document in segments of text and speech."""
        document = Document(raw.id, raw.text)
        s = self.settings
        return segments(raw.text, plan(document, s.epoch, s.seed, s.ratio, s.mean_span))

    def prompt(self, raw: Raw, segment: Segment) -> tuple[np.ndarray, int]:
        """What the model is asked for a span, and the number of its text ids.

        Raises:
            ValueError: the text gives a special token whatever is done.
        """
        return self.asked(raw.text[segment.start : segment.end], raw.voice)

    def asked(self, text: str, voice: str = "") -> tuple[np.ndarray, int]:
        """The ids that ask for a text to be spoken, and how many of them are text."""
        ids = self.tokenizer.encode([spoken(text, self.source.language)])[0]
        return self.writer.opening(ids, voice), len(ids)

    def units_of(self, raw: Raw) -> int:
        """See `Job.units_of`: characters."""
        return len(raw.text)

    def units_in(self, document: Any) -> int:
        """See `Job.units_in`: characters, of what is text and of what is spoken."""
        return sum(end - start for start, end in document.chars)

    def assembled(self, work: Work) -> Any:
        """Text and speech in turns; spans that were not spoken are text again, joined with the text around them.

        Raises:
            Unusable: the text gives a special token.
        """
        pieces: list[tuple[int, int, np.ndarray | None]] = []
        for index, segment in enumerate(work.segments):
            codes = work.speech.get(index)
            if codes is None and pieces and pieces[-1][2] is None:
                pieces[-1] = (pieces[-1][0], segment.end, None)
            else:
                pieces.append((segment.start, segment.end, codes))
        try:
            texts = self.tokenizer.encode([work.raw.text[a:b] for a, b, codes in pieces if codes is None])
        except ValueError as error:
            raise Unusable("special token", str(error)) from None
        written = iter(texts)
        parts = [("text", next(written)) if codes is None else ("speech", codes) for _, _, codes in pieces]
        return Interleaved(work.raw.id, parts, [(a, b) for a, b, _ in pieces])

    def text_ids(self, documents: list[Any]) -> int:
        """Ids of text in documents."""
        return sum(len(ids) for document in documents for kind, ids in document.parts if kind == "text")

    def write(self, shard: Shard, made: OpenShard) -> None:
        """A whole shard, and then that it is whole."""
        documents = [made.documents[number] for number in sorted(made.documents)]
        made.counts["text_ids"] = self.text_ids(documents)
        self.write_documents(self.path(shard), documents)
        digest = hashlib.sha256(self.path(shard).read_bytes()).hexdigest()
        counts = {name: made.counts[name] for name in COUNTS}
        reasons = dict(sorted(made.reasons.items()))
        commit = {"made_with": self.seal, "shard_sha256": digest, "counts": counts, "reasons": reasons}
        write_sealed(self.path(shard).with_suffix(".json"), commit)

    def write_documents(self, path: Path, documents: list[Any]) -> None:
        """The file of a shard."""
        write_interleaved(path, documents, self.making)


COUNTS = (
    "documents_in", "documents", "documents_skipped", "spans", "spoken", "left_as_text", "text_ids", "speech_ids",
    "spoken_text_ids", "retries", "units_in", "units", "shortened",
)  # fmt: skip


def accounts(counts: Mapping[str, int], reasons: Mapping[str, int], unit: str = "characters") -> list[Account]:
    """Of documents, of the spans to be spoken, and of what documents consist of, out of the counts and reasons of a report."""
    why: dict[str, dict[str, int]] = {"document": {}, "span": {}, "unit": {}}
    for reason, count in reasons.items():
        kind, _, name = reason.partition(": ")
        why[kind][name] = count
    words = ("in", "spoken", "left as text")
    return [
        Account("documents", counts["documents_in"], counts["documents"], why["document"]),
        Account("spans", counts["spans"], counts["spoken"], why["span"], words),
        Account(unit, counts["units_in"], counts["units"], why["unit"], ("in", "out", "left out")),
    ]


def one_of(voices: tuple[str, ...], document: str, seed: int) -> str:
    """The voice of a document, by its id and the seed; "" where there are none."""
    return voices[key_of("voice", document, seed) % len(voices)] if voices else ""
