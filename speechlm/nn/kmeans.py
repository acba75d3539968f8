"""k-means on a pool of vectors that every rank holds alike."""

import torch
from torch import Tensor


def nearest(x: Tensor, centers: Tensor, chunk: int = 8192) -> Tensor:
    """(N, D) vectors, (V, D) centers -> (N,) index of the nearest center by L2, at most `chunk` x V distances at a time."""
    half_norm = 0.5 * centers.square().sum(dim=1)
    return torch.cat([torch.argmax(part @ centers.T - half_norm, dim=1) for part in x.split(chunk)])


def kmeans(x: Tensor, num_centers: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm from a random draw of the vectors; a center that loses all its vectors takes a random vector.

    Args:
        x: (N, D) float32, N >= 1. With fewer vectors than centers some centers repeat, a little apart.
        num_centers: V.
        iterations: rounds of assignment and mean.
        generator: on the CPU; the same state on every rank gives the same centers.

    Returns:
        (V, D) centers.
    """
    centers = _draw(x, num_centers, generator)
    for _ in range(iterations):
        owner = nearest(x, centers)
        count = torch.bincount(owner, minlength=num_centers)
        total = torch.zeros_like(centers).index_add_(0, owner, x)
        centers = total / count.clamp(min=1)[:, None]
        empty = count == 0
        centers[empty] = _draw(x, int(empty.sum()), generator)
    return centers


def _draw(x: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """(num, D): distinct vectors while they last, then repeats with a little noise so that no two centers coincide."""
    if num <= len(x):
        return x[torch.randperm(len(x), generator=generator)[:num].to(x.device)].clone()
    picks = x[torch.randint(len(x), (num,), generator=generator).to(x.device)]
    noise = torch.randn(num, x.shape[1], generator=generator).to(x)
    return picks + 1e-3 * x.std(dim=0, correction=0) * noise
