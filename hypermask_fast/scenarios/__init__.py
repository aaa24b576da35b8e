"""Data sets, tasks and device-resident batches.

``split``, ``permuted`` and ``rotated`` turn any :class:`ImageDataset` into a :class:`Scenario`;
``make_scenario`` and the functions named after data sets give the published ones.

The public names are imported when first used: the catalogue is read without PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypermask_fast.lazy import lazy_names

if TYPE_CHECKING:
    from hypermask_fast.scenarios.avalanche_tasks import from_avalanche
    from hypermask_fast.scenarios.builders import permuted, rotated, split
    from hypermask_fast.scenarios.catalogue import SCENARIO_NAMES
    from hypermask_fast.scenarios.cifar10_100 import split_cifar10_100
    from hypermask_fast.scenarios.datasets import (
        load,
        load_cifar10,
        load_cifar100,
        load_digits,
        load_fashion_mnist,
        load_mnist,
    )
    from hypermask_fast.scenarios.folder import from_folder, load_folder
    from hypermask_fast.scenarios.images import ImageDataset, ImageSet
    from hypermask_fast.scenarios.loaded import DatasetSource
    from hypermask_fast.scenarios.own import from_data, make_task
    from hypermask_fast.scenarios.preprocess import Preprocess
    from hypermask_fast.scenarios.published import (
        make_scenario,
        permuted_digits,
        permuted_fashion_mnist,
        permuted_mnist,
        rotated_mnist,
        split_cifar100,
        split_cifar100_fecam,
        split_digits,
        split_fashion_mnist,
        split_mnist,
    )
    from hypermask_fast.scenarios.scenario import Scenario
    from hypermask_fast.scenarios.sources import Split, TensorSet
    from hypermask_fast.scenarios.stream import BatchStream
    from hypermask_fast.scenarios.task import Task
    from hypermask_fast.scenarios.tiny_imagenet import load_tiny_imagenet, split_tiny_imagenet

__all__ = [
    "SCENARIO_NAMES",
    "BatchStream",
    "DatasetSource",
    "ImageDataset",
    "ImageSet",
    "Preprocess",
    "Scenario",
    "Split",
    "Task",
    "TensorSet",
    "from_avalanche",
    "from_data",
    "from_folder",
    "load",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
    "load_folder",
    "load_mnist",
    "load_tiny_imagenet",
    "make_scenario",
    "make_task",
    "permuted",
    "permuted_digits",
    "permuted_fashion_mnist",
    "permuted_mnist",
    "rotated",
    "rotated_mnist",
    "split",
    "split_cifar10_100",
    "split_cifar100",
    "split_cifar100_fecam",
    "split_digits",
    "split_fashion_mnist",
    "split_mnist",
    "split_tiny_imagenet",
]

_MODULES = {
    "permuted": "builders",
    "rotated": "builders",
    "split": "builders",
    "load": "datasets",
    "load_cifar10": "datasets",
    "load_cifar100": "datasets",
    "load_digits": "datasets",
    "load_fashion_mnist": "datasets",
    "load_mnist": "datasets",
    "ImageDataset": "images",
    "ImageSet": "images",
    "DatasetSource": "loaded",
    "from_avalanche": "avalanche_tasks",
    "from_data": "own",
    "from_folder": "folder",
    "load_folder": "folder",
    "make_task": "own",
    "Split": "sources",
    "TensorSet": "sources",
    "Preprocess": "preprocess",
    "SCENARIO_NAMES": "catalogue",
    "split_cifar10_100": "cifar10_100",
    "load_tiny_imagenet": "tiny_imagenet",
    "split_tiny_imagenet": "tiny_imagenet",
    "make_scenario": "published",
    "permuted_digits": "published",
    "permuted_fashion_mnist": "published",
    "permuted_mnist": "published",
    "rotated_mnist": "published",
    "split_cifar100": "published",
    "split_cifar100_fecam": "published",
    "split_digits": "published",
    "split_fashion_mnist": "published",
    "split_mnist": "published",
    "Scenario": "scenario",
    "BatchStream": "stream",
    "Task": "task",
}
__getattr__ = lazy_names(__name__, _MODULES)
