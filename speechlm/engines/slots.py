"""A causal LM with a slot for each of several sequences: prompts in, one further id for every slot at a time."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from speechlm.engines.base import Prompt
from speechlm.engines.slot_cache import SlotCache


def positions_of(model: Any) -> int | None:
    """Ids of the longest sequence a model was made for; None where its config says nothing."""
    found = getattr(model.config, "max_position_embeddings", None)
    return None if found is None else int(found)


def fitting(prompts: Iterable[Prompt], model: Any) -> list[Prompt]:
    """Prompts, allowed to grow no further than the model reaches; those without room for their least are left out."""
    limit = positions_of(model)
    if limit is None:
        return list(prompts)
    cut = [prompt._replace(max_new=min(prompt.max_new, limit - len(prompt.ids))) for prompt in prompts]
    return [prompt for prompt in cut if prompt.max_new >= max(1, prompt.min_new)]


class SlotModel:
    """States of the last position of each sequence; the head is the caller's.

    Slots in use are always the first ones.

    Args:
        model: any causal LM of transformers, in eval mode.
        slots: sequences at once.
        max_length: positions of a sequence.

    Raises:
        ValueError: the model has fewer positions.
    """

    def __init__(self, model: Any, slots: int, max_length: int) -> None:
        limit = positions_of(model)
        if limit is not None and max_length > limit:
            raise ValueError(f"max_length {max_length} is beyond the {limit} positions of the model")
        self.decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        weight = model.get_output_embeddings().weight
        self.device = weight.device
        self._cache = SlotCache(model.config, slots, max_length, weight.device, weight.dtype)

    @torch.no_grad()
    def begin(self, prompts: Sequence[Sequence[int]], first: int) -> Tensor:
        """Fill the slots from number `first` on with prompts -> (n, D) states of their last ids."""
        lens = torch.tensor([len(prompt) for prompt in prompts])
        size = int(lens.max())
        ids = torch.zeros(len(prompts), size, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        causal = torch.ones(size, size, dtype=torch.bool).tril().expand(len(prompts), 1, -1, -1)
        self._cache.begin_fill(self._move(torch.arange(first, first + len(prompts))))
        states = self._forward(ids, torch.arange(size).expand(len(prompts), -1), causal)
        return states[torch.arange(len(prompts)), self._move(lens - 1)]

    @torch.no_grad()
    def step(self, last: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """The last id of each of the first n slots, and how long each sequence is with it -> (n, D) states."""
        positions = torch.tensor(lengths) - 1
        length = int(positions.max()) + 1
        seen = torch.arange(length)[None] <= positions[:, None]
        self._cache.begin_step(self._move(positions), length)
        return self._forward(torch.tensor(last)[:, None], positions[:, None], seen[:, None, None])[:, 0]

    def move(self, source: int, target: int, length: int) -> None:
        """One slot's sequence into another slot."""
        self._cache.move(source, target, length)

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """(n, L) ids -> (n, L, D) states before the head."""
        return self.decoder(
            input_ids=self._move(ids),
            position_ids=self._move(positions),
            attention_mask=self._move(mask),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state

    def _move(self, x: Tensor) -> Tensor:
        return x.to(self.device)
