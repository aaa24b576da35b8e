"""Batches of images that a kernel makes of a stream's table."""

from __future__ import annotations

import math
from typing import TypeGuard

from torch import Tensor

from hypermask_fast.backends.choice import uses_kernels
from hypermask_fast.scenarios.images import ImageSet
from hypermask_fast.scenarios.preprocess import Preprocess
from hypermask_fast.scenarios.sources import Source
from hypermask_fast.scenarios.transform import Transform

_OPTIONS = ("pad", "crop", "permutation", "source", "mean", "std")


def _on_gpu(images: Tensor) -> bool:
    return images.is_cuda and uses_kernels("batch", images)


def _fits(images: ImageSet, preprocess: Preprocess) -> bool:
    channels, *_ = shape = preprocess.output_shape(images.shape)
    tables = (preprocess.permutation, preprocess.source)
    return (preprocess.mean is None or len(preprocess.mean) in (1, channels)) and all(
        table is None or table.numel() == math.prod(shape) for table in tables
    )


def runs(source: Source, preprocess: Transform) -> TypeGuard[ImageSet]:
    """Return whether the kernel is to make batches of a source, on the device that holds it.

    Where tables do not fit the images it is not: the other way raises.
    """
    return (
        isinstance(source, ImageSet)
        and type(preprocess) is Preprocess
        and source.images.is_contiguous()
        and _on_gpu(source.images)
        and _fits(source, preprocess)
    )


def batch(
    images: ImageSet, preprocess: Transform, table: Tensor, number: int | Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Return a batch, where the kernel :func:`runs`.

    Args:
        images: The examples.
        preprocess: What makes network inputs of them.
        table: int64 (positions, 2 or 5), the stream's.
        number: Of the batch; an int or a 0-d integer tensor.
        size: Samples in the batch.
    """
    from hypermask_fast.kernels.scenarios.gather import batch as kernel

    options = {name: getattr(preprocess, name) for name in _OPTIONS}
    return kernel(images.images, table, number, size, **options)
