"""Drawing the next id of many sequences at once, each with a random number of its own."""

import torch
from torch import Tensor

from speechlm.engines.base import Sampling


def choose(logits: Tensor, u: Tensor, sampling: Sampling) -> Tensor:
    """(n, V) logits and (n,) numbers in [0, 1) -> (n,) columns.

    A draw inverts the cumulative distribution at the sequence's own number, so it does not depend on what else is in the batch.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    likeliest = sampling.top_k or (logits.shape[-1] if sampling.top_p < 1 else 0)
    columns = None
    if likeliest:
        logits, columns = logits.topk(min(likeliest, logits.shape[-1]), dim=-1)
    shares = torch.softmax(logits.float() / sampling.temperature, dim=-1).double()
    cumulative = shares.cumsum(-1)
    if sampling.top_p < 1:  # those before which less than top_p has been reached
        shares = shares.masked_fill(cumulative - shares >= sampling.top_p, 0.0)
        cumulative = shares.cumsum(-1)
    drawn = (cumulative <= u.double()[:, None] * cumulative[:, -1:]).sum(-1)
    drawn = torch.minimum(drawn, _last_possible(shares))  # rounding must not land on what has no probability
    return drawn if columns is None else columns.gather(-1, drawn[:, None])[:, 0]


def _last_possible(shares: Tensor) -> Tensor:
    """(n, V) probabilities -> (n,) the last column that has any."""
    columns = torch.arange(shares.shape[-1], device=shares.device)
    return torch.where(shares > 0, columns, 0).amax(-1)
