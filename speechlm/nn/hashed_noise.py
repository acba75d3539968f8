"""Noise that is a function of (seed, channel, position): the same in any batch, in any chunk, on any device.

A generator's numbers depend on how many are drawn at once, so a stream that draws chunk by chunk would not hear what the whole
recording hears. Here each position has its number, made from its index by a hash (the finaliser of SplitMix64, twice).
"""

import math

import torch
from torch import Tensor

GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed 64-bit number
FIRST, SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
BITS = 24


def hashed_uniform(seeds: Tensor, channels: int, length: int = 1, start: int = 0) -> Tensor:
    """(B,) int64 seeds -> (B, C, N) float32 in (0, 1), of positions `start` to `start + length`."""
    return _unit(_bits(seeds, channels, length, start))


def hashed_normal(seeds: Tensor, channels: int, length: int, start: int = 0) -> Tensor:
    """(B,) int64 seeds -> (B, C, N) float32, standard normal, of positions `start` to `start + length`."""
    bits = _bits(seeds, channels, length, start)
    radius = torch.sqrt(-2.0 * torch.log(_unit(bits)))
    return radius * torch.cos(2.0 * math.pi * _unit(bits >> BITS))


def _bits(seeds: Tensor, channels: int, length: int, start: int) -> Tensor:
    """(B, C, N) int64, every bit as good as random."""
    channel = torch.arange(channels, device=seeds.device)
    position = torch.arange(start, start + length, device=seeds.device)
    key = _mix(_mix(seeds * GOLDEN)[:, None] + channel * GOLDEN)
    return _mix(key[:, :, None] + position * GOLDEN)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """A shift to the right that fills with zeros; torch's own repeats the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _unit(bits: Tensor) -> Tensor:
    """The low bits as a number in (0, 1), the ends left out."""
    return ((bits & ((1 << BITS) - 1)).float() + 0.5) / (1 << BITS)
