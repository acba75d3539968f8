"""Replies of several conversations from one causal LM in this process, one batched step after another, in a thread of its own."""

import queue
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from speechlm.engines.base import Prompt, check_prompt
from speechlm.engines.id_kinds import IdKinds
from speechlm.engines.sampling import choose
from speechlm.engines.slots import SlotModel
from speechlm.engines.streaming import Ask, End, EngineBusy, EngineFailed, Kind, Progress
from speechlm.tokens.keyed import key_of, uniform


@dataclass(eq=False)
class HuggingFaceStream:
    """See `IdStream`. What it holds is bounded by the reply's longest length."""

    ask: Ask
    stall_sec: float
    progress: Progress
    numbers: Tensor  # (max_new + 1,) one random number per id
    new: list[int] = field(default_factory=list)
    end: End | Literal[""] = ""
    closed: bool = False
    ready: "queue.SimpleQueue[int | End | EngineFailed]" = field(default_factory=queue.SimpleQueue)

    def __iter__(self) -> "HuggingFaceStream":
        return self

    def __next__(self) -> int:
        """See `IdStream`."""
        if self.end:
            raise StopIteration
        try:
            item = self.ready.get(timeout=self.stall_sec)
        except queue.Empty:
            self.close()
            raise EngineFailed(f"the language model has given nothing for {self.stall_sec:g} s") from None
        if isinstance(item, int):
            return item
        self.end = "invalid" if isinstance(item, EngineFailed) else item
        if isinstance(item, EngineFailed):
            raise item
        raise StopIteration

    def close(self) -> None:
        """See `IdStream`."""
        if not self.closed:
            self.closed = True
            self.ready.put("interrupted")

    @property
    def length(self) -> int:
        return len(self.ask.ids) + len(self.new)


class HuggingFaceStreams:
    """A `StreamingEngine` on any causal LM of transformers, on its device and in its precision.

    Every step computes one id for each reply that is being generated. Ids that the reply's form does not allow at that place have
    probability 0. An error in a step fails the replies at work; those to come are tried again.

    Args:
        model: in eval mode.
        kinds: what its ids are.
        slots: replies at once.
        max_length: positions of a conversation with its reply.
        max_waiting: replies that may wait for a slot.
        stall_sec: longest wait for an id.

    Raises:
        ValueError: the model has fewer positions, or fewer ids than the vocabulary.
    """

    def __init__(
        self,
        model: Any,
        kinds: IdKinds,
        slots: int = 8,
        max_length: int = 2048,
        max_waiting: int = 32,
        stall_sec: float = 20.0,
    ) -> None:
        self._lm = SlotModel(model, slots, max_length)
        self._head = model.get_output_embeddings()
        self.vocab_size = model.get_input_embeddings().weight.shape[0]
        if len(kinds.vocab) > self.vocab_size:
            raise ValueError(f"the vocabulary has {len(kinds.vocab)} ids, the model {self.vocab_size}")
        self.kinds, self.slots, self.max_length = kinds, slots, max_length
        self.max_waiting, self.stall_sec = max_waiting, stall_sec
        self._tables: dict[int, Tensor] = {}
        self._waiting: list[HuggingFaceStream] = []
        self._working: list[HuggingFaceStream] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="language-model", daemon=True)
        self._thread.start()

    def open(self, ask: Ask) -> HuggingFaceStream:
        """See `StreamingEngine.open`."""
        check_prompt(Prompt(ask.key, tuple(ask.ids), ask.max_new), self.vocab_size, self.max_length)
        numbers = uniform(key_of("reply", ask.sampling.seed, ask.key), ask.max_new + 1)
        stream = HuggingFaceStream(ask, self.stall_sec, ask.form.begin(), torch.from_numpy(numbers))
        with self._changed:
            if self._ended:
                raise EngineFailed("the language model has been closed")
            if len(self._waiting) >= self.max_waiting:
                raise EngineBusy(f"{len(self._waiting)} replies are waiting for the language model already")
            self._waiting.append(stream)
            self._changed.notify()
        return stream

    def close(self) -> None:
        """See `StreamingEngine.close`."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()
        for stream in [*self._waiting, *self._working]:
            stream.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._ended and not self._waiting and not self._working:
                    self._changed.wait()
                if self._ended:
                    return
                fresh = self._admitted()
            try:
                self._advance(fresh)
            except Exception as error:
                self._fail(error)

    def _admitted(self) -> list[HuggingFaceStream]:
        """Those that get a slot now; who has hung up meanwhile is let go."""
        waiting = [stream for stream in self._waiting if not stream.closed]
        free = self.slots - len(self._working)
        fresh, self._waiting = waiting[:free], waiting[free:]
        return fresh

    def _advance(self, fresh: list[HuggingFaceStream]) -> None:
        """One more id for every slot in use, the first one for those that just got theirs."""
        self._let_go()
        before = list(self._working)
        self._working += fresh
        if before:
            last, lengths = [stream.new[-1] for stream in before], [stream.length for stream in before]
            self._draw(before, self._lm.step(last, lengths))
        if fresh:
            self._draw(fresh, self._lm.begin([stream.ask.ids for stream in fresh], len(before)))
        self._let_go()

    def _draw(self, streams: list[HuggingFaceStream], states: Tensor) -> None:
        logits = self._head(states).float() + torch.stack([self._allowed(stream) for stream in streams])
        numbers = torch.stack([stream.numbers[len(stream.new)] for stream in streams]).to(logits.device)
        drawn = torch.zeros(len(streams), dtype=torch.long, device=logits.device)
        for sampling in {stream.ask.sampling for stream in streams}:
            rows = torch.tensor([n for n, stream in enumerate(streams) if stream.ask.sampling == sampling])
            rows = rows.to(logits.device)
            drawn[rows] = choose(logits[rows], numbers[rows], sampling)
        for stream, shared_id in zip(streams, drawn.tolist(), strict=True):
            self._give(stream, shared_id)

    def _give(self, stream: HuggingFaceStream, shared_id: int) -> None:
        kind = self.kinds.kind(shared_id, stream.ask.form.end)
        assert kind & stream.progress.allowed, f"id {shared_id} was drawn, which has no probability"
        stream.new.append(shared_id)
        if kind is Kind.END:
            stream.ready.put("stop")
            stream.closed = True
            return
        stream.progress.take(kind)
        stream.ready.put(shared_id)
        if len(stream.new) == stream.ask.max_new:
            stream.ready.put("length")
            stream.closed = True

    def _let_go(self) -> None:
        """Take what has ended out of its slot, and close the gap with the last slot."""
        for slot in reversed(range(len(self._working))):
            if not self._working[slot].closed:
                continue
            last = self._working.pop()
            if slot < len(self._working):
                self._lm.move(len(self._working), slot, last.length)
                self._working[slot] = last

    def _fail(self, error: Exception) -> None:
        failed = EngineFailed(f"the language model failed: {type(error).__name__}: {error}")
        for stream in self._working:
            stream.closed = True
            stream.ready.put(failed)
        self._working = []

    def _allowed(self, stream: HuggingFaceStream) -> Tensor:
        end = stream.ask.form.end
        if end not in self._tables:
            self._tables[end] = self.kinds.table(end, self.vocab_size, self._lm.device)
        return self._tables[end][int(stream.progress.allowed)]
