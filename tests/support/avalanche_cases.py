"""Benchmarks of Avalanche made of tensors; the tests that use them are skipped without it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hypermask_fast.vision import import_torchvision

WHY = "avalanche-lib is not installed"
CLASSES = 6


def avalanche(name: str = "avalanche") -> Any:
    """A module of Avalanche, or the skip of the test that asks for it."""
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=WHY)


class Points(Dataset[tuple[Tensor, int]]):
    """Points about the corner of their class."""

    def __init__(self, count: int = 96, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.targets = [place % CLASSES for place in range(count)]
        corners = 3 * torch.eye(CLASSES)[self.targets]
        self.inputs = corners + 0.3 * torch.randn(count, CLASSES, generator=generator)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.inputs[place], self.targets[place]


def make_benchmark(**options: Any) -> Any:
    """Two tasks of three classes."""
    benchmarks = avalanche("avalanche.benchmarks")
    options = {"n_experiences": 2, "task_labels": True, "shuffle": True, "seed": 3} | options
    return benchmarks.nc_benchmark(Points(), Points(48, seed=1), **options)
