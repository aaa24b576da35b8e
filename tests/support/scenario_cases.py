"""Data sets and tasks that are made up, and preprocessing in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hypermask_fast.scenarios import (
    ImageDataset,
    ImageSet,
    cifar10_100,
    published,
    split,
    tiny_imagenet,
)


def make_task(n: int, *, shape=(1, 4, 4), crop=0, flip=False, classes=3):
    """A task in which every image is told by its first pixel, and the label by that."""
    images = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1).repeat(1, *shape)
    images[:, :, 1:, :] = torch.randint(0, 256, (n, shape[0], shape[1] - 1, shape[2])).to(
        torch.uint8
    )
    classes = min(classes, n)
    images_set = ImageSet(images, torch.arange(n) % classes)
    dataset = ImageDataset("made", images_set, images_set, tuple("abcdefgh"[:classes]))
    return split(dataset, crop=crop, flip=flip)[0]


def transform_reference(images, draws, *, pad=0, permutation=None, crop=0, mean=None, std=None):
    """One image at a time, in the order of the published pipelines."""
    result = []
    for image, (top, left, mirrored) in zip(images, draws, strict=True):
        x = image.astype(np.float32) / np.float32(255)
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
        channels, height, width = x.shape
        x = np.pad(x, ((0, 0), (crop, crop), (crop, crop)))
        x = x[:, top : top + height, left : left + width]
        if mirrored:
            x = x[:, :, ::-1]
        if permutation is not None:
            x = x.reshape(-1)[permutation].reshape(channels, height, width)
        if mean is not None:
            x = x - np.array(mean, np.float32)[:, None, None]
            x = x / np.array(std, np.float32)[:, None, None]
        result.append(x)
    return np.stack(result)


def make_dataset(n=120, classes=6, shape=(1, 4, 4), name="made") -> ImageDataset:
    sets = [
        ImageSet(
            torch.randint(0, 256, (count, *shape)).to(torch.uint8),
            torch.arange(count)[torch.randperm(count)] % classes,
        )
        for count in (n, n // 2)
    ]
    return ImageDataset(name, *sets, tuple(f"c{i}" for i in range(classes)))


def replace_datasets(monkeypatch: pytest.MonkeyPatch, count: int = 6000) -> None:
    """Let the published scenarios read stand-ins of the same shapes, of ``count`` black images."""
    for name, classes, shape in (
        ("mnist", 10, (1, 28, 28)),
        ("fashion_mnist", 10, (1, 28, 28)),
        ("cifar10", 10, (3, 32, 32)),
        ("cifar100", 100, (3, 32, 32)),
        ("tiny_imagenet", 200, (3, 64, 64)),
    ):
        images = ImageSet(
            torch.zeros(count, *shape, dtype=torch.uint8), torch.arange(count) % classes
        )
        names = tuple(map(str, range(classes)))
        dataset = ImageDataset(name.replace("_", "-"), images, images, names)
        for module in (published, cifar10_100, tiny_imagenet):
            if hasattr(module, f"load_{name}"):
                monkeypatch.setattr(module, f"load_{name}", lambda root, dataset=dataset: dataset)
