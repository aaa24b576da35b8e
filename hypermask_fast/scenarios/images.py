"""Images with labels: a set of them, a data set of two, and what a task takes of a set."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hypermask_fast.errors import DataError
from hypermask_fast.scenarios.moving import Movable


@dataclass(frozen=True, eq=False)
class ImageSet(Movable):
    """Images with their global labels.

    Attributes:
        images: uint8 (n, C, H, W).
        labels: int64 (n,).

    Raises:
        ValueError: a tensor has another type or shape.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}; give torch.uint8 (n, C, H, W)"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels are {labels.dtype} {tuple(labels.shape)}; "
                f"give torch.int64 ({len(images)},), one for each image"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """The device that holds the images."""
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def _moved(self, device: torch.device) -> ImageSet:
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
    """

    name: str
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
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


@dataclass(frozen=True, eq=False)
class Split(Movable):
    """Some images of an image set, with the labels they have within a task.

    Attributes:
        source: The image set; its storage is shared, never copied.
        index: int64 (n,), the images' places in ``source``.
        labels: int64 (n,), local labels.
    """

    source: ImageSet = field(repr=False)
    index: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        if self.index.shape != self.labels.shape or self.index.dim() != 1:
            raise ValueError(
                f"index has shape {tuple(self.index.shape)} and labels {tuple(self.labels.shape)}; "
                "both must be (n,)"
            )

    @property
    def images(self) -> Tensor:
        """uint8 (all images of the source, C, H, W)."""
        return self.source.images

    def __len__(self) -> int:
        return self.index.shape[0]

    @property
    def device(self) -> torch.device:
        """The device that holds the images."""
        return self.source.device

    def _moved(self, device: torch.device) -> Split:
        return Split(self.source.to(device), self.index.to(device), self.labels.to(device))
