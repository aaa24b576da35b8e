"""Images with labels: a set of them, a data set of two, and what a task takes of a set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hypermask_fast.errors import DataError, shown
from hypermask_fast.modes import has_values
from hypermask_fast.scenarios.moving import Movable


def check_tensors(**values: Tensor) -> None:
    """Raise TypeError where a value is no tensor."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} are {shown(value)}; give a tensor: torch.as_tensor makes one of an array "
                "or a list"
            )


def check_types(**values: tuple[object, type]) -> None:
    """Raise TypeError where a value is no object of its class."""
    for name, (value, cls) in values.items():
        if not isinstance(value, cls):
            raise TypeError(f"{name} is {shown(value)}; give a {cls.__name__}")


def check_names(name: str, values: Sequence[str]) -> None:
    """Raise TypeError where names are no list of strings."""
    if (
        isinstance(values, str)
        or not isinstance(values, Sequence)
        or not all(isinstance(value, str) for value in values)
    ):
        raise TypeError(f"{name} are {shown(values)}; give a tuple of strings")


@dataclass(frozen=True, eq=False)
class ImageSet(Movable):
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


@dataclass(frozen=True, eq=False)
class Split(Movable):
    """Some images of an image set, with the labels they have within a task.

    Attributes:
        source: The image set; its storage is shared, never copied.
        index: int64 (n,), the images' places in ``source``.
        labels: int64 (n,), local labels.

    Raises:
        ValueError: A tensor has another type or shape, or an index is no place in the source.
        TypeError: The source is no ImageSet, or one of the others no tensor.
    """

    source: ImageSet = field(repr=False)
    index: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        check_types(source=(self.source, ImageSet))
        check_tensors(index=self.index, labels=self.labels)
        for name, value in (("index", self.index), ("labels", self.labels)):
            if value.dtype != torch.int64:
                raise ValueError(
                    f"{name} is {value.dtype} of shape {tuple(value.shape)}; give torch.int64"
                )
        if self.index.shape != self.labels.shape or self.index.dim() != 1:
            raise ValueError(
                f"index has shape {tuple(self.index.shape)} and labels {tuple(self.labels.shape)}; "
                "both must be (n,)"
            )
        if len(self.index) and has_values(self.index):
            low, high = (int(place) for place in self.index.aminmax())
            if low < 0 or high >= len(self.source):
                raise ValueError(
                    f"index of shape {tuple(self.index.shape)} reaches from {low} to {high}; give "
                    f"places in the source, 0 to {len(self.source) - 1}"
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
