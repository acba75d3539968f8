"""Continuous batching on any Hugging Face causal LM: a slot that ends is given the next prompt at once.

A static batch waits for its longest member; spans of text have a Poisson number of words, so most of such a batch is waiting.
Here the rows of every forward pass all have work. The output head is cut down to the ids that may be generated: of a vocabulary
of 170,000, a tenth is computed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from speechlm.engines.base import Finish, Generation, Prompt, Sampling, Target, check_prompt
from speechlm.engines.sampling import choose
from speechlm.engines.slots import SlotModel
from speechlm.tokens.keyed import key_of, uniform


@dataclass
class _Sequence:
    """A prompt at work in a slot."""

    prompt: Prompt
    numbers: Tensor  # (max_new + 1,) one random number per id
    new: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.prompt.ids) + len(self.new)


class HuggingFaceEngine:
    """Generates with a causal LM in this process, on its device and in its precision.

    With temperature 0 the ids are those of `transformers.generate` with the same ids allowed, up to the rounding of batched
    arithmetic. With sampling, they are a function of the seed and the prompt's key, up to the same rounding.

    Args:
        model: any causal LM of transformers, in eval mode.
        target: ids that may be generated.
        slots: sequences at once.
        max_length: positions of a sequence, prompt and all.
        banned: ids of the target that are impossible all the same, such as text in other scripts.
    """

    def __init__(
        self, model: Any, target: Target, slots: int = 64, max_length: int = 1024, banned: Sequence[int] = ()
    ) -> None:
        self._lm = SlotModel(model, slots, max_length)
        self.model, self.target, self.slots, self.max_length = model, target, slots, max_length
        head: nn.Linear = model.get_output_embeddings()
        self.vocab_size = model.get_input_embeddings().weight.shape[0]
        columns = torch.tensor([*range(target.first, target.first + target.count), target.stop])
        if int(columns.max()) >= len(head.weight):
            raise ValueError(
                f"the target's ids reach to {int(columns.max())}, the model's vocabulary has {len(head.weight)} ids; was the "
                f"model extended by the same vocabulary?"
            )
        self._weight = head.weight.detach()[columns.to(head.weight.device)]
        self._bias = None if head.bias is None else head.bias.detach()[columns.to(head.weight.device)]
        if banned:
            hidden = torch.isin(columns, torch.tensor(list(banned))) & (columns != target.stop)
            bias = torch.zeros(len(columns)) if self._bias is None else self._bias.float().cpu()
            self._bias = bias.masked_fill(hidden, -torch.inf).to(self._weight)

    @torch.no_grad()
    def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[Generation]:
        """See `Engine.generate`."""
        waiting, working = iter(prompts), list[_Sequence]()
        more = True
        while more or working:
            # A few at a time: filling has a price of its own.
            if more and self.slots - len(working) >= max(1, self.slots // 8):
                more = self._fill(waiting, working, sampling)
                yield from self._finished(working)
            if working:
                self._step(working, sampling)
                yield from self._finished(working)

    def _fill(self, waiting: Iterator[Prompt], working: list[_Sequence], sampling: Sampling) -> bool:
        """Give every free slot a prompt and draw its first id; False where there were not enough."""
        fresh = []
        for prompt in waiting:
            check_prompt(prompt, self.vocab_size, self.max_length)
            numbers = uniform(key_of("engine", sampling.seed, prompt.key), prompt.max_new + 1)
            fresh.append(_Sequence(prompt, torch.from_numpy(numbers)))
            if len(working) + len(fresh) == self.slots:
                break
        first = len(working)
        working += fresh
        if fresh:
            self._begin(fresh, first, sampling)
        return len(working) == self.slots

    def _begin(self, fresh: list[_Sequence], first: int, sampling: Sampling) -> None:
        self._draw(fresh, self._lm.begin([sequence.prompt.ids for sequence in fresh], first), sampling)

    def _step(self, working: list[_Sequence], sampling: Sampling) -> None:
        """One more id for every slot in use."""
        last, lengths = [sequence.new[-1] for sequence in working], [sequence.length for sequence in working]
        self._draw(working, self._lm.step(last, lengths), sampling)

    def _draw(self, sequences: list[_Sequence], states: Tensor, sampling: Sampling) -> None:
        logits = nn.functional.linear(states, self._weight, self._bias).float()
        early = torch.tensor([len(sequence.new) < sequence.prompt.min_new for sequence in sequences])
        logits[:, -1].masked_fill_(self._move(early), -torch.inf)
        numbers = torch.stack([sequence.numbers[len(sequence.new)] for sequence in sequences])
        columns = choose(logits, self._move(numbers), sampling).tolist()
        for sequence, column in zip(sequences, columns, strict=True):
            sequence.new.append(self.target.stop if column == self.target.count else self.target.first + column)

    def _finished(self, working: list[_Sequence]) -> Iterator[Generation]:
        """Take what has ended out of its slot, and close the gap with the last slot."""
        for slot in reversed(range(len(working))):
            sequence = working[slot]
            finish = self._finish(sequence)
            if finish is None:
                continue
            last = working.pop()
            if last is not sequence:
                self._lm.move(len(working), slot, last.length)
                working[slot] = last
            ids = sequence.new[:-1] if finish == "stop" else sequence.new
            yield Generation(sequence.prompt.key, tuple(ids), finish)

    def _finish(self, sequence: _Sequence) -> Finish | None:
        if sequence.new[-1] == self.target.stop:
            return "stop"
        return "length" if len(sequence.new) >= sequence.prompt.max_new else None

    def _move(self, x: Tensor) -> Tensor:
        return x.to(self._weight.device)
