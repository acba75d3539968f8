"""A network of finite reach, run over a stream of frames with work per chunk that does not grow, and no seam.

Each output depends on so many frames to its left and right and no others. Outputs that lack frames on the right are held back;
frames that no output to come depends on are forgotten. So every output is computed once, from all that it depends on, and equals
the one computed from the whole recording.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class Overlap:
    """Frames in, final outputs out.

    Args:
        network: (B, C, F) frames -> (B, F * hop) outputs, for any F of at least one.
        reach: frames on each side of a frame that its outputs depend on.
        hop: outputs per frame.
        behind: frames before a frame that its outputs depend on, where those are not as many as the ones after it.
    """

    def __init__(
        self, network: Callable[[Tensor], Tensor], reach: int, hop: int = 1, behind: int | None = None
    ) -> None:
        self.network, self.reach, self.hop = network, reach, hop
        self.behind = reach if behind is None else behind
        self.frames: Tensor | None = None  # those that are still needed
        self.done = 0  # how many of them have their outputs already

    def push(self, frames: Tensor, last: bool = False) -> Tensor:
        """(B, C, F) further frames, F may be 0 -> (B, N) outputs that are final now; all that are left at the `last`."""
        held = frames if self.frames is None else torch.cat([self.frames, frames], dim=2)
        final = held.shape[2] - (0 if last else self.reach)
        if final <= self.done:
            self.frames = held
            return frames.new_zeros(frames.shape[0], 0)
        made = self.network(held)[:, self.done * self.hop : final * self.hop]
        forgotten = max(0, final - self.behind)
        self.frames, self.done = held[:, :, forgotten:], final - forgotten
        return made
