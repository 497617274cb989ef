"""Which video stands at which place of the endless training stream: counter-based, O(1) to seek, equal on every rank.

The stream visits the n videos of a list in a new random order in every pass, without end; `num_sample` consecutive
clips of the stream come from one video. Nothing here depends on ranks, workers or what was read before.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def mix(*parts: int) -> int:
    """One well-mixed 63-bit number from integers (each taken modulo 2^64); the order of the parts counts.

    Each part goes through splitmix64's finaliser (Steele, Lea, Flood 2014, doi 10.1145/2660193.2660195).
    """
    state = 0
    for part in parts:
        state = _finalise((state + _GOLDEN + part) & _WORD)
    return state >> 1


def sample_seed(seed: int, epoch: int, index: int, repeat: int = 0) -> int:
    """The non-negative int64 seed of one clip: `repeat` counts the clips cut from one decoded video."""
    return mix(seed, epoch, index, repeat)


def locate(first: int, count: int, *, seed: int, dataset_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(pass over the list, index in the list) of the videos first .. first+count-1 of the stream, int64 [count]."""
    draws = np.arange(first, first + count, dtype=np.int64)
    epochs, places = np.divmod(draws, dataset_size)
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = position(seed, int(epoch), places[here], dataset_size)
    return epochs, indices


def position(seed: int, epoch: int, place: ArrayLike, size: int) -> NDArray[np.int64]:
    """Where each `place` of a pass falls in the list: a permutation of 0 .. size-1, evaluated at single points.

    A Feistel network over the next even number of bits, walked until it lands inside (Black, Rogaway 2002,
    doi 10.1007/3-540-45760-7_9): no table, so a list of any length costs nothing to seek in.
    """
    half = (max(size - 1, 1).bit_length() + 1) // 2
    keys = [np.uint64(mix(seed, epoch, size, turn)) for turn in range(_ROUNDS)]
    found = np.atleast_1d(np.asarray(place, dtype=np.uint64)).copy()
    if found.size and int(found.max()) >= size:
        raise IndexError(f"place {int(found.max())} of a pass over {size} videos")
    outside = np.ones(found.shape, dtype=bool)
    while outside.any():
        found[outside] = _feistel(found[outside], half, keys)
        outside = found >= np.uint64(size)
    return found.astype(np.int64)


def short_pass(
    size: int, samples: int, *, epoch: int, seed: int = 0, rank: int = 0, world: int = 1
) -> NDArray[np.int64]:
    """simple-tad's epoch of `samples` out of `size` entries: the places that one rank reads.

    A new permutation for each epoch (torch's, from seed + epoch), of which the first `samples` count, so that no entry
    comes twice in an epoch; `samples` of 0 or at least `size` takes all. What does not divide over the ranks is left
    out. The seed of the original is torch's default 0, not the run's.
    """
    generator = torch.Generator().manual_seed(seed + epoch)
    count = min(samples, size) if samples else size
    total = count // world * world
    order: NDArray[np.int64] = torch.randperm(size, generator=generator)[:total].numpy()
    return order[rank::world]


def _feistel(words: Words, half: int, keys: list[np.uint64]) -> Words:
    shift, low = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = words >> shift, words & low
    for key in keys:
        left, right = right, left ^ (_finalise_words(right ^ key) & low)
    return (left << shift) | right


def _finalise(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def _finalise_words(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
