"""Group normalisation over time that does not see the padding."""

import torch.nn.functional as F
from torch import Tensor, nn


class MaskedGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` of (B, C, F) whose mean and variance are those of a recording alone, however long its row is."""

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """(B, C, F) and (B, 1, F) bool, None where every frame is real -> (B, C, F)."""
        if real is None:
            return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        grouped = x.float().unflatten(1, (self.num_groups, -1))  # (B, G, C / G, F)
        weight = real[:, None].to(grouped.dtype)
        count = weight.sum(3, keepdim=True) * grouped.shape[2]
        mean = (grouped * weight).sum((2, 3), keepdim=True) / count
        variance = ((grouped - mean).square() * weight).sum((2, 3), keepdim=True) / count
        normed = ((grouped - mean) * (variance + self.eps).rsqrt()).flatten(1, 2)
        return (normed * self.weight[:, None] + self.bias[:, None]).to(x.dtype)
