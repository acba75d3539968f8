"""What makes a language model's layers faster without changing what they compute: compiling them, and float8 products."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from speechlm.nn.loss_kernels import LossKernel, find_kernel

Float8 = Literal["tensorwise", "rowwise", "emulated"]
MULTIPLE = 16  # of both sides of a matrix, which float8 products need


@dataclass(frozen=True)
class Speed:
    """Ways to be faster; all off, so that whatever is on was chosen.

    Args:
        compile: torch.compile every layer by itself; minutes at the start, and one form for all layers.
        float8: products of the layers in float8 (torchao): "tensorwise" is faster, "rowwise" more exact, "emulated" computes what
            tensorwise gives in the usual precision, for tests. Needs `compile`, without which it is slower than bfloat16.
        loss: "chunked" is our own, in torch; "liger" is the kernel of liger-kernel, which has to give our gradients on this
            machine before it is used.
    """

    compile: bool = False
    float8: Float8 | None = None
    loss: LossKernel = "chunked"

    def __post_init__(self) -> None:
        if self.float8 not in (None, "tensorwise", "rowwise", "emulated"):
            raise ValueError(f"speed.float8 must be null, 'tensorwise', 'rowwise' or 'emulated', got {self.float8!r}")
        if self.float8 in ("tensorwise", "rowwise") and not self.compile:
            raise ValueError("speed.float8 is slower than bfloat16 without speed.compile; set speed.compile: true")
        find_kernel(self.loss)


def use_float8(layers: Sequence[nn.Module], form: Float8) -> int:
    """Make the products of layers float8; weights keep their names and their precision. The number of matrices changed.

    Args:
        layers: of the model, changed in place; the head and the embedding are not among them.
        form: see `Speed`.

    Raises:
        ValueError: torchao is not installed, or no matrix has sides that are multiples of 16.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ValueError("speed.float8 needs torchao: pip install 'speechlm[fast]'") from error
    config = Float8LinearConfig(emulate=True) if form == "emulated" else Float8LinearConfig.from_recipe_name(form)
    changed = 0

    def fits(module: nn.Module, name: str) -> bool:
        nonlocal changed
        fitting = type(module) is nn.Linear and not (module.in_features % MULTIPLE or module.out_features % MULTIPLE)
        changed += fitting
        return fitting

    for layer in layers:
        convert_to_float8_training(layer, module_filter_fn=fits, config=config)
    if not changed:
        raise ValueError(
            f"speed.float8 found no matrix whose sides are multiples of {MULTIPLE} (LoRA's are not converted)"
        )
    return changed


def compile_layers(layers: Sequence[nn.Module], **settings: Any) -> None:
    """Compile every layer by itself, in place; before weights are spread over ranks, after recomputation is chosen."""
    for layer in layers:
        layer.compile(**settings)
