"""The generators that transforms and functions of users draw from, seeded for a while."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded_python(seed: int) -> Iterator[None]:
    """Seed Python and NumPy inside; leave them as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - transforms use it
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch's CPU inside; leave them as they were."""
    with torch.random.fork_rng(devices=[]), seeded_python(seed):
        torch.manual_seed(seed)
        yield
