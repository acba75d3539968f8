"""Spans of documents through an engine: prompts out, generations in, checked, tried again, and shards as they get whole."""

import logging
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from datamodules.documents import Raw, Unusable
from speechlm.engines.base import Generation, Prompt
from speechlm.engines.checks import SpeechChecks
from speechlm.spoken_text import speakable
from speechlm.tokens.interleave import Segment
from speechlm.tokens.vocab import Vocab

log = logging.getLogger(__name__)

Shard = tuple[int, int]  # file, and which of its shards


class Watcher(Protocol):
    """Who wants to know how far it is."""

    def spoke(self, spans: int, ids: int) -> None:
        """So many more spans have come back, as so many speech ids."""
        ...

    def shard_done(self, documents: int, kept: bool) -> None:
        """A shard is there, made now or before."""
        ...


@dataclass
class Work:
    """A document whose spans are being spoken."""

    shard: Shard
    number: int  # in its shard
    raw: Raw
    segments: list[Segment]
    speech: dict[int, np.ndarray] = field(default_factory=dict)  # codes by segment
    waiting: int = 0  # spans that have not come back


@dataclass
class OpenShard:
    """A shard whose documents are at work."""

    left: int
    documents: dict[int, Any] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)


class Job(Protocol):
    """What is spoken, and what becomes of it."""

    vocab: Vocab

    @property
    def checks(self) -> SpeechChecks:
        """Bounds on what is generated."""
        ...

    @property
    def tries(self) -> int:
        """Generations of a span before it is given up."""
        ...

    @property
    def open_shards(self) -> int:
        """Shards at work at once."""
        ...

    def shards(self, rank: int, world_size: int) -> Iterator[tuple[Shard, list[Raw]]]:
        """A process's shards, and their documents."""
        ...

    def done(self, shard: Shard) -> Any:
        """Whether a shard is there; None where it is not."""
        ...

    def spans_of(self, raw: Raw) -> list[Segment]:
        """A document in segments of text and speech."""
        ...

    def prompt(self, raw: Raw, segment: Segment) -> tuple[np.ndarray, int]:
        """What the model is asked for a span, and the number of its text ids.

        Raises:
            ValueError: it can not be asked.
        """
        ...

    def units_of(self, raw: Raw) -> int:
        """Characters or turns of a document, as it is before it is spoken."""
        ...

    def units_in(self, document: Any) -> int:
        """Characters or turns of what was assembled."""
        ...

    def assembled(self, work: "Work") -> Any:
        """What goes into the shard of a document whose spans have come back.

        Raises:
            Unusable: nothing does.
        """
        ...

    def write(self, shard: Shard, made: "OpenShard") -> None:
        """A whole shard, and then that it is whole."""
        ...


class Flow:
    """Documents on their way through the engine: prompts out, generations in, shards written as they get whole."""

    def __init__(self, job: Job, rank: int, world_size: int, watcher: Watcher, room: int) -> None:
        self.job, self.watcher, self.room = job, watcher, room
        self.source = job.shards(rank, world_size)
        self.open: dict[Shard, OpenShard] = {}
        self.working: dict[str, tuple[Work, int, int, int]] = {}  # by key: document, segment, try, text ids
        self.ready: deque[tuple[Work, int, int]] = deque()  # document, segment, try
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
        problem = self.job.checks.problem(text_ids, generation)
        if problem and attempt + 1 < self.job.tries:
            self.open[work.shard].counts["retries"] += 1
            self.ready.append((work, segment, attempt + 1))
            return
        if problem:
            self._leave(work, problem)
        else:
            codes = self.job.vocab.ids_to_speech(np.array(generation.ids, np.int64))
            self._spoken(work, segment, codes, text_ids)
        self._one_less(work)

    def _next_shard(self) -> bool:
        """Begin a shard; False where enough are open or none is left."""
        while not self.exhausted and len(self.open) < self.job.open_shards:
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
        made = self.open[shard] = OpenShard(len(documents))
        made.counts["documents_in"] = len(documents)
        made.counts["units_in"] = sum(self.job.units_of(raw) + raw.left_out.total() for raw in documents)
        made.counts["shortened"] = sum(raw.shortened for raw in documents)
        works = [self._work(shard, number, raw) for number, raw in enumerate(documents)]
        for work in works:
            if work is None or not work.waiting:
                self._done(shard, work)

    def _work(self, shard: Shard, number: int, raw: Raw) -> Work | None:
        """A document with its spans in the queue; None where it can not be used."""
        made = self.open[shard]
        problem = raw.problem or ("" if raw.text.strip() else "empty")
        if problem:
            self._skip(made, raw, problem)
            return None
        work = Work(shard, number, raw, self.job.spans_of(raw))
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

    def _prompt(self, work: Work, segment: int, attempt: int) -> Prompt | None:
        """The span's prompt, known by its key until it comes back; None where it can not be asked."""
        checks = self.job.checks
        try:
            ids, text_ids = self.job.prompt(work.raw, work.segments[segment])
        except ValueError as error:
            log.debug("%s: %s", work.raw.id, error)
            ids, text_ids = np.zeros(0, np.int64), 0
        if not text_ids or len(ids) + checks.max_new(text_ids) > self.room:
            self._leave(work, "too long" if text_ids else "not speakable")
            self._one_less(work)
            return None
        key = f"{work.shard[0]}/{work.shard[1]}/{work.number}/{segment}/{attempt}"
        self.working[key] = (work, segment, attempt, text_ids)
        return Prompt(key, tuple(ids.tolist()), checks.max_new(text_ids), checks.min_new(text_ids))

    def _spoken(self, work: Work, segment: int, codes: np.ndarray, text_ids: int) -> None:
        work.speech[segment] = codes
        counts = self.open[work.shard].counts
        counts["spoken"] += 1
        counts["speech_ids"] += len(codes)
        counts["spoken_text_ids"] += text_ids
        self.watcher.spoke(1, len(codes))

    def _leave(self, work: Work, reason: str) -> None:
        made = self.open[work.shard]
        made.counts["left_as_text"] += 1
        made.reasons[f"span: {reason}"] += 1

    def _one_less(self, work: Work) -> None:
        work.waiting -= 1
        if not work.waiting:
            self._done(work.shard, work)

    def _done(self, shard: Shard, work: Work | None) -> None:
        """A document has all its speech, or never gets into the shard."""
        made = self.open[shard]
        made.left -= 1
        if work is not None:
            try:
                document = made.documents[work.number] = self.job.assembled(work)
            except Unusable as error:
                self._skip(made, work.raw, error.reason)
            else:
                made.counts["documents"] += 1
                made.counts["units"] += self.job.units_in(document)
                self._leave_out(made, work.raw.left_out)
        if not made.left:
            self.job.write(shard, self.open.pop(shard))
            self.watcher.shard_done(made.counts["documents_in"], kept=False)

    def _skip(self, made: OpenShard, raw: Raw, reason: str) -> None:
        """A document is not in the shard, and so is nothing of it."""
        made.counts["documents_skipped"] += 1
        made.reasons[f"document: {reason}"] += 1
        self._leave_out(made, raw.left_out + Counter({"in documents left out": self.job.units_of(raw)}))

    def _leave_out(self, made: OpenShard, units: Counter[str]) -> None:
        made.reasons.update({f"unit: {reason}": count for reason, count in units.items() if count})
