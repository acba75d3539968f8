"""Randomness without a generator: numbers and permutations that are a pure function of a key, in any process and version."""

import hashlib

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 by the golden ratio, SplitMix64's step
ROUND_KEYS = [np.uint64(number * GOLDEN % 2**64) for number in range(1, 7)]


def key_of(*parts: str | int) -> int:
    """64 bits from names and numbers; different lists of parts have different keys."""
    text = "".join(f"{type(part).__name__}:{len(str(part))}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: (…) uint64 -> (…) uint64, every bit of the input in every bit of the output."""
    x = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(key: int, count: int, start: int = 0) -> np.ndarray:
    """(count,) uint64, numbers `start` … of the stream that belongs to a key."""
    counter = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    return mix(counter + np.uint64(key))


def uniform(key: int, count: int, start: int = 0) -> np.ndarray:
    """(count,) float64 in [0, 1), numbers `start` … of the stream that belongs to a key."""
    return (bits(key, count, start) >> np.uint64(11)) * 2.0**-53


def permuted(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Where a permutation of `size` things, one permutation for each key, sends an index; nothing of it is stored.

    A Feistel network over the next larger square power of two; what falls behind `size` is sent on until it falls into it.

    Args:
        index: (N,) in [0, size).
        size: things that are permuted.
        keys: (N,) uint64, the permutation each index is looked up in.

    Returns:
        (N,) int64.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    result = np.asarray(index, np.uint64).copy()
    pending = np.arange(len(result))
    while len(pending):
        left, right = result[pending] >> half, result[pending] & low
        for round_key in ROUND_KEYS:
            shuffled = mix(right + keys[pending] + round_key)
            left, right = right, left ^ (shuffled & low)
        result[pending] = (left << half) | right
        pending = pending[result[pending] >= size]
    return result.astype(np.int64)
