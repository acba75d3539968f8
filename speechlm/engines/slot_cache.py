"""Keys and values of sequences of different lengths, one slot each, in buffers that never grow."""

import torch
from torch import Tensor
from transformers import PretrainedConfig


class SlotCache:
    """What transformers' attention layers write to and read from, where every slot is at a position of its own.

    Slots in use are always the first ones: when one ends, the last one moves into its place (`move`), so that no row of a
    batch is idle. Not a `transformers.Cache`, only what the attention layers need of one: masks and positions are handed to the
    model ready made, so nothing asks for one length that all sequences share.

    Args:
        config: of the language model.
        slots: sequences at once.
        max_length: positions of a slot.
        device: of the buffers.
        dtype: of the buffers.
    """

    def __init__(
        self, config: PretrainedConfig, slots: int, max_length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.slots, self.max_length = slots, max_length
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, slots, heads, max_length, width)
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self._rows: Tensor | None = None  # slots that are being filled
        self._positions: Tensor | None = None  # where the slots in use write their next key
        self._length = 0

    is_compileable = False  # asked for by transformers

    def begin_fill(self, rows: Tensor) -> None:
        """The next forward pass brings whole prompts for these slots, from position 0."""
        self._rows, self._positions = rows, None

    def begin_step(self, positions: Tensor, length: int) -> None:
        """The next forward pass brings one id for each of the first `len(positions)` slots.

        Args:
            positions: (n,) where each of them stands.
            length: positions to attend to, more than any of `positions`.
        """
        self._rows, self._positions, self._length = None, positions, length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Keep (n, H, L, W) keys and values, and give back those to attend to."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if self._rows is not None:
            keys[self._rows, :, : key_states.shape[2]] = key_states
            values[self._rows, :, : value_states.shape[2]] = value_states
            return key_states, value_states
        assert self._positions is not None, "begin_fill or begin_step comes before every forward pass"
        count = len(self._positions)
        every = torch.arange(count, device=keys.device)
        keys[every, :, self._positions] = key_states[:, :, 0]
        values[every, :, self._positions] = value_states[:, :, 0]
        return keys[:count, :, : self._length], values[:count, :, : self._length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one slot's first `length` positions into another."""
        for buffer in (self.keys, self.values):
            buffer[:, target, :, :length] = buffer[:, source, :, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Not one number here; positions are handed to the model by the engine."""
        return 0
