"""Images with labels: a set of them, and a data set of two."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hypermask_fast.errors import DataError
from hypermask_fast.scenarios.sources import (
    HostSet,
    Source,
    check_labels,
    check_names,
    check_tensors,
    check_types,
    fits,
)


@dataclass(frozen=True, eq=False)
class ImageSet(Source):
    """Images with their global labels.

    Attributes:
        images: uint8 (n, C, H, W).
        labels: int64 (n,).

    Raises:
        ValueError: a tensor has another type or shape.
        TypeError: one is no tensor.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        check_tensors(images=images, labels=labels)
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}; give torch.uint8 (n, C, H, W)"
            )
        check_labels(labels, len(images), "image")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """The device that holds the images."""
        return self.images.device

    def take(self, places: Tensor) -> Tensor:
        return self.images.index_select(0, places)

    def _moved(self, device: torch.device) -> Any:
        if not fits(self.images.nbytes, device):
            return HostSet(self, device)
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A data set with its official split.

    Attributes:
        name: Used in the names of scenarios.
        train, test: Image sets of one image shape.
        class_names: One for each global label.

    Raises:
        DataError: the shapes differ, or a label has no class name.
        TypeError: a part is no ImageSet, or a name no string.
    """

    name: str
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        check_types(name=(self.name, str), train=(self.train, ImageSet), test=(self.test, ImageSet))
        check_names("class_names", self.class_names)
        if self.train.shape != self.test.shape:
            raise DataError(
                f"{self.name} has training images of shape {self.train.shape} and test images of "
                f"shape {self.test.shape}; they must be equal"
            )
        for part, images in (("training", self.train), ("test", self.test)):
            if len(images) == 0:
                raise DataError(f"{self.name} has no {part} images; give at least one")
            low, high = int(images.labels.min()), int(images.labels.max())
            if low < 0 or high >= self.num_classes:
                raise DataError(
                    f"{self.name} has {part} labels from {low} to {high}; expected 0 to "
                    f"{self.num_classes - 1}, a class name for each"
                )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)
