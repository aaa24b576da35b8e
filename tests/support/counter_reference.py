"""The hash and the draws of hypermask_fast.counters, in numpy."""

from __future__ import annotations

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15


def hash_reference(*words) -> np.ndarray:
    """The same hash in numpy's unsigned arithmetic."""
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for word in words:
            word = np.asarray(word)
            state = (state ^ word.astype(np.int64).astype(np.uint64)) + np.uint64(GOLDEN)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def randint_reference(high: int, *words) -> np.ndarray:
    return ((hash_reference(*words) >> np.uint64(32)) * np.uint64(high)) >> np.uint64(32)
