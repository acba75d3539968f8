"""Self-attention that knows how far apart two positions are, in ESPnet's form. https://arxiv.org/abs/1901.02860, appendix B

Modules are named as in the released CosyVoice and GLM-4-Voice weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.nn.block_window import Past, joined


class RelativeAttention(nn.Module):
    """Score of query i and key j: (q_i + u)·k_j + (q_i + v)·(W r_{i-j}), r being sinusoids of the distance.

    Args:
        width: D.
        heads: H; D is a multiple of it.
        dropout: of the attention's weights.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads or width // heads % 2:
            raise ValueError(f"width must be an even multiple of heads, got width {width} and {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (nn.Linear(width, width) for _ in range(4))
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, width // heads))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    def forward(self, x: Tensor, distances: Tensor, allowed: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """Attention of Q positions to themselves and to P before them.

        Args:
            x: (B, Q, D).
            distances: (P + 2Q - 1, D) `distance_sinusoids(Q, P + Q)`.
            allowed: (B or 1, 1, Q, P + Q) bool, the query may look at the key.
            past: of the P positions.

        Returns:
            (B, Q, D), and keys and values of all P + Q.
        """
        q, k, v = (self._split(linear(x)) for linear in (self.linear_q, self.linear_k, self.linear_v))
        all_keys = joined(past, k, v)
        r = self._split(self.linear_pos(distances)[None])
        by_distance = (q + self.pos_bias_v[:, None]) @ r.transpose(-2, -1)
        bias = shifted(by_distance, all_keys.keys.shape[2]) / math.sqrt(q.shape[-1])
        bias = bias.masked_fill(~allowed, torch.finfo(bias.dtype).min)  # finite: a padded query may see nothing at all
        out = F.scaled_dot_product_attention(
            q + self.pos_bias_u[:, None],
            all_keys.keys,
            all_keys.values,
            attn_mask=bias.to(q.dtype),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.linear_out(out.transpose(1, 2).flatten(2)), all_keys

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, D / H)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def distance_sinusoids(queries: int, keys: int, width: int, device: torch.device | None = None) -> Tensor:
    """(K + Q - 1, width): sinusoids of the distances K - 1, …, 0, …, -(Q - 1), the queries being the last of the keys."""
    distance = torch.arange(keys - 1, -queries, -1, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(10_000.0) / width))
    return torch.stack([(distance * rate).sin(), (distance * rate).cos()], dim=2).flatten(1)


def shifted(by_distance: Tensor, keys: int) -> Tensor:
    """(B, H, Q, K + Q - 1) scores by distance, the largest first -> (B, H, Q, K) scores by key."""
    b, h, queries, distances = by_distance.shape
    padded = F.pad(by_distance, (1, 0)).reshape(b, h, distances + 1, queries)  # every row one further to the left
    return padded[:, :, 1:].reshape(b, h, queries, distances)[..., :keys]
