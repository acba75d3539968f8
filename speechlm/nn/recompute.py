"""Which parts of a layer are kept for the backward pass, and which are computed again.

Keeping nothing costs a third more operations and leaves one tensor a layer. Keeping the results of attention and of every second
matrix product is torchtitan's "per-op" policy.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = bool | int | Literal["selective", "products"]
PRODUCTS = ("aten::mm", "aten::addmm", "aten::_scaled_mm")
ATTENTION = (
    "aten::_scaled_dot_product_",
    "higher_order::flex_attention",
    "flex_attention",
    "torch_attn::_varlen_attn",
)


def recompute(layers: Sequence[nn.Module], form: Recompute) -> None:
    """Have layers computed again in the backward pass instead of keeping what they computed on the way forward.

    Args:
        layers: of the model, in order; changed in place.
        form: True is all of them, wholly, a number n every n-th; "selective" keeps, in all of them, attention and every second
            matrix product, "products" attention and all of them; False does nothing.

    Raises:
        ValueError: there is no such form.
    """
    if isinstance(form, str) and form not in ("selective", "products"):
        raise ValueError(
            f"activation_checkpointing must be true, false, a number, 'selective' or 'products', got {form!r}"
        )
    if not form:
        return
    if not isinstance(form, str) and form < 0:
        raise ValueError(f"activation_checkpointing: every {form}-th layer is none; give 1 or more")
    settings: dict[str, Any] = {"use_reentrant": False}
    if isinstance(form, str):
        every = 2 if form == "selective" else 1
        settings["context_fn"] = partial(_contexts, every)
    for layer in layers[:: 1 if isinstance(form, str) else int(form)]:
        layer.forward = partial(_forward, layer, settings)


def _forward(layer: nn.Module, settings: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """The layer's own forward, remembered by its inputs. Inside of the layer's call, so that compiling it takes this in too."""
    own = partial(type(layer).forward, layer)
    if not (layer.training and torch.is_grad_enabled()):
        return own(*args, **kwargs)
    return checkpoint(own, *args, **settings, **kwargs)


def _contexts(every: int) -> Any:
    return create_selective_checkpoint_contexts(_Policy(every))


class _Policy:
    """Says of every operation of a layer whether its result is kept; counted anew forward and backward."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.products = {False: 0, True: 0}

    def __call__(self, context: Any, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name = str(operation.name()) if hasattr(operation, "name") and callable(operation.name) else str(operation)
        if name.startswith(ATTENTION):
            return CheckpointPolicy.MUST_SAVE
        if name.startswith(PRODUCTS):
            again = bool(context.is_recompute)
            self.products[again] += 1
            if self.products[again] % self.every == 0:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE
