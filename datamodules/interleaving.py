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
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from datamodules.documents import Raw, files_of, read_documents
from datamodules.interleaved import Interleaved, Making, write_interleaved
from datamodules.sealed import read_sealed, seal_of, write_sealed
from speechlm.conservation import Account
from speechlm.engines.base import Engine, Generation, Prompt, Sampling
from speechlm.engines.checks import SpeechChecks
from speechlm.spoken_text import speakable, spoken
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.interleave import Document, Segment, plan, segments
from speechlm.tokens.templates import Template, Writer
from speechlm.tokens.vocab import Vocab

log = logging.getLogger(__name__)

SCHEMA = 1
JOB = "job.json"
Shard = tuple[int, int]  # file, and which of its shards


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
        max_document_chars: longer documents are cut off here.
        checks: bounds on what is generated.
        template: how text-to-token rows are written, as the model was trained; null is the default of `tts`.
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

    def __post_init__(self) -> None:
        if min(self.tries, self.shard_documents, self.open_shards, self.max_document_chars) < 1:
            raise ValueError(
                f"tries, shard_documents, open_shards and max_document_chars must be at least 1, got {self.tries}, "
                f"{self.shard_documents}, {self.open_shards} and {self.max_document_chars}"
            )


class Watcher(Protocol):
    """Who wants to know how far it is."""

    def spoke(self, spans: int, ids: int) -> None:
        """So many more spans have come back, as so many speech ids."""
        ...

    def shard_done(self, documents: int, kept: bool) -> None:
        """A shard is there, made now or before."""
        ...


@dataclass
class _Work:
    """A document whose spans are being spoken."""

    shard: Shard
    number: int  # in its shard
    id: str
    text: str
    segments: list[Segment]
    speech: dict[int, np.ndarray] = field(default_factory=dict)  # codes by segment
    waiting: int = 0  # spans that have not come back


@dataclass
class _Open:
    """A shard whose documents are at work."""

    left: int
    documents: dict[int, Interleaved] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)


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
        self.writer = text_to_token_writer(settings.template, vocab, tokenizer)
        self.files = files_of(source.paths, "text")
        plan_of = {
            "schema": SCHEMA,
            "source": asdict(source),
            "settings": {k: v for k, v in asdict(settings).items() if k != "open_shards"},
            "sampling": asdict(sampling),
            "vocab_hash": vocab.hash,
            "text_tokenizer": tokenizer.fingerprint,
            "model": model,
            "files": [[str(file), file.stat().st_size] for file in self.files],
        }
        self.seal = seal_of(plan_of)
        self._begin(plan_of)
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

    # -- what is there -------------------------------------------------------------------------------------------------

    def path(self, shard: Shard) -> Path:
        """File of a shard."""
        return self.folder / f"{shard[0]:05d}-{shard[1]:05d}.safetensors"

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
        for account in accounts(counts, reasons):
            account.require(str(self.folder))
        return {"counts": counts, "reasons": dict(sorted(reasons.items()))}

    # -- the work ------------------------------------------------------------------------------------------------------

    def run(self, engine: Engine, rank: int, world_size: int, watcher: Watcher) -> None:
        """Make this process's share of the shards that are not there."""
        flow = _Flow(self, rank, world_size, watcher, engine.max_length)
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
            documents = read_documents(file, "text", self.source.text_field, self.source.id_field)
            documents = itertools.islice(documents, self.source.max_documents)
            index = 0
            while part := list(itertools.islice(documents, self.settings.shard_documents)):
                if by_file or (number + index) % world_size == rank:
                    yield (number, index), part
                index += 1
            if by_file or number % world_size == rank:
                write_sealed(self.folder / f"{number:05d}.json", {"shards": index})

    def spans_of(self, raw: Raw) -> list[Segment]:
        """A document in segments of text and speech."""
        document = Document(raw.id, raw.text)
        s = self.settings
        return segments(raw.text, plan(document, s.epoch, s.seed, s.ratio, s.mean_span))

    def prompt(self, text: str) -> tuple[np.ndarray, int]:
        """What the model is asked for a span, and the number of its text ids.

        Raises:
            ValueError: the text gives a special token whatever is done.
        """
        ids = self.tokenizer.encode([spoken(text, self.source.language)])[0]
        return self.writer.opening(ids), len(ids)

    def write(self, shard: Shard, made: _Open) -> None:
        """A whole shard, and then that it is whole."""
        documents = [made.documents[number] for number in sorted(made.documents)]
        write_interleaved(self.path(shard), documents, self.making)
        digest = hashlib.sha256(self.path(shard).read_bytes()).hexdigest()
        counts = {name: made.counts[name] for name in COUNTS}
        reasons = dict(sorted(made.reasons.items()))
        commit = {"made_with": self.seal, "shard_sha256": digest, "counts": counts, "reasons": reasons}
        write_sealed(self.path(shard).with_suffix(".json"), commit)

    def _begin(self, plan_of: dict[str, Any]) -> None:
        path = self.folder / JOB
        if path.exists() and (before := read_sealed(path)) != json.loads(json.dumps(plan_of)):
            changed = sorted(key for key in plan_of if before.get(key) != json.loads(json.dumps(plan_of[key])))
            raise ValueError(
                f"{self.folder} was begun with another {', '.join(changed)}; choose another folder for this"
            )
        write_sealed(path, json.loads(json.dumps(plan_of)))


COUNTS = (
    "documents_in", "documents", "documents_skipped", "spans", "spoken", "left_as_text", "text_ids", "speech_ids",
    "spoken_text_ids", "retries",
)  # fmt: skip


def accounts(counts: Mapping[str, int], reasons: Mapping[str, int]) -> list[Account]:
    """Of documents and of the spans to be spoken, out of the counts and reasons of a report."""
    why: dict[str, dict[str, int]] = {"document": {}, "span": {}}
    for reason, count in reasons.items():
        kind, _, name = reason.partition(": ")
        why[kind][name] = count
    words = ("in", "spoken", "left as text")
    return [
        Account("documents", counts["documents_in"], counts["documents"], why["document"]),
        Account("spans", counts["spans"], counts["spoken"], why["span"], words),
    ]


def text_to_token_writer(template: Template | None, vocab: Vocab, tokenizer: TextTokenizer) -> Writer:
    """Who writes what a text-to-token model is asked; the same for training rows and for generation."""
    return Writer(
        "tts",
        template,
        vocab,
        lambda text: tokenizer.encode([text])[0].tolist(),
        tokenizer.specials,
        tokenizer.end,
    )


class _Flow:
    """Documents on their way through the engine: prompts out, generations in, shards written as they get whole."""

    def __init__(self, job: InterleaveJob, rank: int, world_size: int, watcher: Watcher, room: int) -> None:
        self.job, self.watcher, self.room = job, watcher, room
        self.source = job.shards(rank, world_size)
        self.open: dict[Shard, _Open] = {}
        self.working: dict[str, tuple[_Work, int, int, int]] = {}  # by key: document, segment, try, text ids
        self.ready: deque[tuple[_Work, int, int]] = deque()  # document, segment, try
        self.exhausted = False

    @property
    def unfinished(self) -> bool:
        return not self.exhausted or bool(self.open)

    def prompts(self) -> Iterator[Prompt]:
        """Spans to be spoken, as long as there is one that needs no generation to come back first."""
        while self.ready or self._next_shard():
            while self.ready:
                work, segment, attempt = self.ready.popleft()
                prompt = self._prompt(work, segment, attempt)
                if prompt is not None:
                    yield prompt

    def take(self, generation: Generation) -> None:
        """Put a generation into its document, or try again."""
        work, segment, attempt, text_ids = self.working.pop(generation.key)
        problem = self.job.settings.checks.problem(text_ids, generation)
        if problem and attempt + 1 < self.job.settings.tries:
            self.open[work.shard].counts["retries"] += 1
            self.ready.append((work, segment, attempt + 1))
            return
        if problem:
            self._leave(work, problem)
        else:
            codes = np.array(generation.ids, np.int64) - self.job.vocab.speech_offset
            self._spoken(work, segment, codes, text_ids)
        self._one_less(work)

    def _next_shard(self) -> bool:
        """Begin a shard; False where enough are open or none is left."""
        while not self.exhausted and len(self.open) < self.job.settings.open_shards:
            shard, documents = next(self.source, ((-1, -1), []))
            if not documents:
                self.exhausted = True
            elif self.job.done(shard) is not None:
                self.watcher.shard_done(len(documents), kept=True)
            else:
                self._begin(shard, documents)
                if self.ready:
                    return True
        return False

    def _begin(self, shard: Shard, documents: list[Raw]) -> None:
        made = self.open[shard] = _Open(len(documents))
        made.counts["documents_in"] = len(documents)
        works = [self._work(shard, number, raw) for number, raw in enumerate(documents)]
        for work in works:
            if work is None or not work.waiting:
                self._done(shard, work)

    def _work(self, shard: Shard, number: int, raw: Raw) -> _Work | None:
        """A document with its spans in the queue; None where it can not be used."""
        made = self.open[shard]
        raw.text = raw.text[: self.job.settings.max_document_chars]
        problem = raw.problem or ("" if raw.text.strip() else "empty")
        if problem:
            made.counts["documents_skipped"] += 1
            made.reasons[f"document: {problem}"] += 1
            return None
        work = _Work(shard, number, raw.id.replace("\0", "\ufffd"), raw.text, self.job.spans_of(raw))
        for index, segment in enumerate(work.segments):
            if segment.kind != "speech":
                continue
            made.counts["spans"] += 1
            if why := speakable(raw.text[segment.start : segment.end]):
                self._leave(work, why)
            else:
                work.waiting += 1
                self.ready.append((work, index, 0))
        return work

    def _prompt(self, work: _Work, segment: int, attempt: int) -> Prompt | None:
        """The span's prompt, known by its key until it comes back; None where it can not be asked."""
        span = work.segments[segment]
        checks = self.job.settings.checks
        try:
            ids, text_ids = self.job.prompt(work.text[span.start : span.end])
        except ValueError as error:
            log.debug("%s: %s", work.id, error)
            ids, text_ids = np.zeros(0, np.int64), 0
        if not text_ids or len(ids) + checks.max_new(text_ids) > self.room:
            self._leave(work, "too long" if text_ids else "not speakable")
            self._one_less(work)
            return None
        key = f"{work.shard[0]}/{work.shard[1]}/{work.number}/{segment}/{attempt}"
        self.working[key] = (work, segment, attempt, text_ids)
        return Prompt(key, tuple(ids.tolist()), checks.max_new(text_ids), checks.min_new(text_ids))

    def _spoken(self, work: _Work, segment: int, codes: np.ndarray, text_ids: int) -> None:
        work.speech[segment] = codes
        counts = self.open[work.shard].counts
        counts["spoken"] += 1
        counts["speech_ids"] += len(codes)
        counts["spoken_text_ids"] += text_ids
        self.watcher.spoke(1, len(codes))

    def _leave(self, work: _Work, reason: str) -> None:
        made = self.open[work.shard]
        made.counts["left_as_text"] += 1
        made.reasons[f"span: {reason}"] += 1

    def _one_less(self, work: _Work) -> None:
        work.waiting -= 1
        if not work.waiting:
            self._done(work.shard, work)

    def _done(self, shard: Shard, work: _Work | None) -> None:
        """A document has all its speech, or never gets into the shard."""
        made = self.open[shard]
        made.left -= 1
        document = self._assembled(work) if work is not None else None
        if work is not None and document is not None:
            made.documents[work.number] = document
            made.counts["documents"] += 1
            made.counts["text_ids"] += sum(len(ids) for kind, ids in document.parts if kind == "text")
        elif work is not None:
            made.counts["documents_skipped"] += 1
            made.reasons["document: special token"] += 1
        if not made.left:
            self.job.write(shard, self.open.pop(shard))
            self.watcher.shard_done(made.counts["documents_in"], kept=False)

    def _assembled(self, work: _Work) -> Interleaved | None:
        """Text and speech in turns; spans that were not spoken are text again, joined with the text around them."""
        pieces: list[tuple[int, int, np.ndarray | None]] = []
        for index, segment in enumerate(work.segments):
            codes = work.speech.get(index)
            if codes is None and pieces and pieces[-1][2] is None:
                pieces[-1] = (pieces[-1][0], segment.end, None)
            else:
                pieces.append((segment.start, segment.end, codes))
        try:
            texts = self.job.tokenizer.encode([work.text[a:b] for a, b, codes in pieces if codes is None])
        except ValueError:
            return None
        written = iter(texts)
        parts = [("text", next(written)) if codes is None else ("speech", codes) for _, _, codes in pieces]
        return Interleaved(work.id, parts)
