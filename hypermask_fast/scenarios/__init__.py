"""Data sets, tasks and device-resident batches.

``split`` and ``permuted`` turn any :class:`ImageDataset` into a :class:`Scenario`;
``make_scenario`` and the functions named after data sets give the published ones.
"""

from __future__ import annotations

from hypermask_fast.scenarios.builders import permuted, split
from hypermask_fast.scenarios.datasets import (
    load,
    load_cifar100,
    load_digits,
    load_fashion_mnist,
    load_mnist,
)
from hypermask_fast.scenarios.images import ImageDataset, ImageSet, Split
from hypermask_fast.scenarios.preprocess import Preprocess
from hypermask_fast.scenarios.published import (
    SCENARIO_NAMES,
    make_scenario,
    permuted_digits,
    permuted_fashion_mnist,
    permuted_mnist,
    split_cifar100,
    split_cifar100_fecam,
    split_digits,
    split_fashion_mnist,
    split_mnist,
)
from hypermask_fast.scenarios.scenario import Scenario
from hypermask_fast.scenarios.stream import BatchStream
from hypermask_fast.scenarios.task import Task

__all__ = [
    "SCENARIO_NAMES",
    "BatchStream",
    "ImageDataset",
    "ImageSet",
    "Preprocess",
    "Scenario",
    "Split",
    "Task",
    "load",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
    "load_mnist",
    "make_scenario",
    "permuted",
    "permuted_digits",
    "permuted_fashion_mnist",
    "permuted_mnist",
    "split",
    "split_cifar100",
    "split_cifar100_fecam",
    "split_digits",
    "split_fashion_mnist",
    "split_mnist",
]
