"""CIFAR-10 and then classes of CIFAR-100, as HNET was trained on them."""

from __future__ import annotations

from pathlib import Path

import torch

from hypermask_fast.scenarios.builders import split
from hypermask_fast.scenarios.datasets import load_cifar10, load_cifar100
from hypermask_fast.scenarios.images import ImageDataset, ImageSet
from hypermask_fast.scenarios.preprocess import cifar_options
from hypermask_fast.scenarios.scenario import Scenario


def _joined(first: ImageDataset, second: ImageDataset) -> ImageDataset:
    """Return one data set of both, the classes of the second after those of the first."""

    def both(a: ImageSet, b: ImageSet) -> ImageSet:
        labels = torch.cat((a.labels, b.labels + first.num_classes))
        return ImageSet(torch.cat((a.images, b.images)), labels)

    return ImageDataset(
        f"{first.name}-{second.name}",
        both(first.train, second.train),
        both(first.test, second.test),
        first.class_names + second.class_names,
    )


def split_cifar10_100(
    root: str | Path,
    tasks: int | None = None,
    validation: int = 0,
    augment: bool = True,
    normalize: bool = True,
) -> Scenario:
    """Return CIFAR-10, then CIFAR-100 in tasks of 10 classes in natural order (HNET).

    HNET's ZenkeNet was trained with ``augment=False, normalize=False``.

    Args:
        root: Folder of the data sets; what is missing is downloaded.
        tasks: Keep only the first tasks, of 11. Default: 6, as published.
        validation: Held-out images of each task, the first ones. Default 0.
        augment: Random crop to 32x32 with padding 4, and random horizontal flip. Default True.
        normalize: ImageNet's mean and standard deviation. Default True.
    """
    options = cifar_options(augment, normalize)
    return split(
        _joined(load_cifar10(root), load_cifar100(root)),
        10,
        tasks=6 if tasks is None else tasks,
        validation=validation,
        stratified=False,
        **options,
        name="split-cifar10-100",
    )
