"""Low-rank adaptation (LoRA, arXiv 2106.09685): frozen matrices learn by a narrow product beside them, merged in the end."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Lora:
    """What of a language model learns, and how much.

    Args:
        rank: width of the products.
        alpha: their weight is alpha / rank.
        targets: names of the matrices that learn, such as q_proj; all of every layer if empty.
        embeddings: train all embeddings and the head too. Without it the new ids stay as they were first set.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: list[str] = field(default_factory=list)
    embeddings: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"lora needs rank >= 1 and alpha > 0, got {self.rank} and {self.alpha}")


class LoraLinear(nn.Linear):
    """A linear layer `W x + b` that becomes `(W + s B A) x + b`, with `W` and `b` frozen; `weight` and `bias` keep their names.

    Args:
        linear: its weights are shared, not copied.
        rank: of the product.
        scale: s.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias, self.scale = linear.weight.requires_grad_(False), linear.bias, scale
        if linear.bias is not None:
            linear.bias.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)

    def merged(self) -> nn.Linear:
        """The plain layer that computes the same."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight = nn.Parameter(self.weight.detach() + self.scale * self.lora_b.detach() @ self.lora_a.detach())
        plain.bias = self.bias
        return plain


def add_lora(model: PreTrainedModel, layers: list[nn.Module], lora: Lora, seed: int = 0) -> None:
    """Freeze a model and give the matrices of its layers what learns.

    Args:
        model: everything of it is frozen but, where asked for, its embeddings and head.
        layers: where matrices are looked for.
        lora: which of them, and how.
        seed: of the first values.

    Raises:
        ValueError: a target fits nothing.
    """
    model.requires_grad_(False)
    found: set[str] = set()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parent in [part for layer in layers for part in layer.modules()]:
            for name, child in list(parent.named_children()):
                if not isinstance(child, nn.Linear):
                    continue
                found.add(name)
                if not lora.targets or name in lora.targets:
                    setattr(parent, name, LoraLinear(child, lora.rank, lora.alpha / lora.rank))
    missing = set(lora.targets) - found
    if missing:
        raise ValueError(f"lora.targets names {sorted(missing)}; the layers of the model have {sorted(found)}")
    if lora.embeddings:
        for part in (model.get_input_embeddings(), model.get_output_embeddings()):
            part.requires_grad_(True)


def merge_lora(model: nn.Module) -> None:
    """Make every adapted layer of a model the plain one that computes the same."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLinear):
                setattr(parent, name, child.merged())
