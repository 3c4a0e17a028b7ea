"""What is random about an answer of the other side: numbers that follow from the seed and the conversation alone."""

from __future__ import annotations

from hashlib import blake2b

_BITS = 53
"""Of a uniform number: as many as a float64 holds."""


def derived(seed: int, key: str) -> int:
    """A seed of 56 bits for one conversation at one point; other pieces of work with its key have other seeds."""
    return int.from_bytes(_hash(seed, key)[:7])


def uniform(seed: int, key: str) -> float:
    """A number of [0, 1), uniform over keys and over seeds."""
    return (int.from_bytes(_hash(seed, key)[:8]) >> (64 - _BITS)) / 2**_BITS


def _hash(seed: int, key: str) -> bytes:
    return blake2b(f"nashpo user 1\0{seed}\0{key}".encode(), digest_size=16).digest()
