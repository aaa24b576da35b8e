"""Batches of uint8 images become network inputs, on the device that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hypermask_fast.counters import AUGMENT, counter_randint
from hypermask_fast.errors import ConfigError, shown
from hypermask_fast.fields import check_value
from hypermask_fast.modes import has_values
from hypermask_fast.scenarios.sources import check_tensors
from hypermask_fast.scenarios.transform import Transform

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels of ImageNet's images; the published runs use them for CIFAR's too."""


def _per_channel(name: str, values: Sequence[float] | None) -> Tensor | None:
    if values is None:
        return None
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise ConfigError(f"{name}={shown(values)} is no list; give a number for each channel")
    numbers = [check_value(name, float, value) for value in values]
    return torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1)


def _check_permutation(permutation: Tensor | None) -> None:
    if permutation is None:
        return
    if not isinstance(permutation, Tensor):
        raise ConfigError(f"permutation is {shown(permutation)}; give an int64 tensor (C*H*W,)")
    ordered = permutation.dtype == torch.int64 and permutation.dim() == 1
    if ordered and has_values(permutation):
        places = torch.arange(len(permutation), device=permutation.device)
        ordered = torch.equal(permutation.sort().values, places)
    if not ordered:
        raise ConfigError(
            f"permutation is {permutation.dtype} of shape {tuple(permutation.shape)}; give int64 "
            "(C*H*W,) that holds every place once"
        )


def _check_source(source: Tensor | None) -> None:
    if source is None:
        return
    if not isinstance(source, Tensor):
        raise ConfigError(f"source is {shown(source)}; give an int64 tensor (C*H*W,)")
    fits = source.dtype == torch.int64 and source.dim() == 1
    if fits and has_values(source) and len(source):
        fits = int(source.min()) >= -1 and int(source.max()) < len(source)
    if not fits:
        raise ConfigError(
            f"source is {source.dtype} of shape {tuple(source.shape)}; give int64 (C*H*W,) of "
            "places, and -1 for black pixels"
        )


class Preprocess(Transform):
    """Pad, crop and flip at random, move and permute pixels, scale to [0, 1] and normalise.

    In this order. All before scaling only move bytes, so they run on uint8; the zeros that padding
    brings in are black pixels, which are normalised like all others (torchvision's ``RandomCrop``
    before ``ToTensor`` and ``Normalize`` does the same).

    Args:
        pad: Zeros added on all four sides; the image grows. Default 0.
        permutation: int64 (C*H*W,) over the padded image: output pixel i is input pixel
            ``permutation[i]``. Default: none.
        source: int64 (C*H*W,) over the padded image: pixel i comes from place ``source[i]``, and is
            black where that is -1, before the permutation. Default: none.
        crop: Zeros added on all four sides before a crop back to the former size, at a place drawn
            for each sample. Default 0: no random crop.
        flip: Mirror each sample left to right with probability 1/2. Default False.
        mean, std: One value for each channel (or one for all), in units of the scaled image. Both
            or neither.

    Raises:
        ConfigError: a setting is out of range, or one of ``mean`` and ``std`` is missing.
    """

    def __init__(
        self,
        *,
        pad: int = 0,
        permutation: Tensor | None = None,
        source: Tensor | None = None,
        crop: int = 0,
        flip: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        for name, value in (("pad", pad), ("crop", crop)):
            check_value(name, int, value, low=0)
        check_value("flip", bool, flip)
        _check_permutation(permutation)
        _check_source(source)
        self.mean, self.std = _per_channel("mean", mean), _per_channel("std", std)
        if (mean is None) != (std is None):
            raise ConfigError(f"mean is {mean} and std is {std}; give both or neither")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ConfigError(f"mean is {mean} and std is {std}; they must have one length")
        if self.std is not None and not bool((self.std > 0).all()):
            raise ConfigError(f"std is {std}; every value must be above 0")
        self.pad = pad
        self.permutation, self.source = permutation, source
        self.crop = crop
        self.flip = flip

    @property
    def random(self) -> bool:
        """Whether samples are cropped or flipped at random, so that a call needs ``draws``."""
        return self.crop > 0 or self.flip

    def draws(self, seed: int, task_id: int, step: int | Tensor, position: Tensor) -> Tensor:
        """Draw what the random transforms need, as a function of the counters alone.

        Args:
            seed, task_id: Integers.
            step: Step number, an integer or an integer tensor that broadcasts with ``position``.
            position: int64 (n,), the samples' positions in their batches.

        Returns:
            int64 (n, 3): rows and columns to cut off at the top and the left of the padded image,
            and 1 where the sample is mirrored.
        """
        ranges = (2 * self.crop + 1, 2 * self.crop + 1, 2 if self.flip else 1)
        columns = [
            counter_randint(high, seed, task_id, AUGMENT, purpose, step, position)
            for purpose, high in enumerate(ranges)
        ]
        return torch.stack(columns, dim=-1)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the (C, H, W) that images of the given (C, H, W) come out with."""
        channels, height, width = shape
        return channels, height + 2 * self.pad, width + 2 * self.pad

    def to(self, device: torch.device | str) -> Preprocess:
        """Return the same preprocessing with its tensors on ``device``."""
        moved = object.__new__(Preprocess)
        for name, value in vars(self).items():
            setattr(moved, name, value.to(device) if isinstance(value, Tensor) else value)
        return moved

    def __repr__(self) -> str:
        flat = {
            name: None
            if tensor is None
            else [round(value, 6) for value in tensor.flatten().tolist()]
            for name, tensor in (("mean", self.mean), ("std", self.std))
        }
        permuted = self.permutation is not None
        moved = ", moved=True" if self.source is not None else ""
        return (
            f"Preprocess(pad={self.pad}, permuted={permuted}{moved}, crop={self.crop}, "
            f"flip={self.flip}, mean={flat['mean']}, std={flat['std']})"
        )

    def __call__(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """Turn images into network inputs.

        Args:
            images: uint8 (B, C, H, W).
            draws: int64 (B, 3) of :meth:`draws`; needed if and only if :attr:`random`.

        Returns:
            float32 (B, C, H + 2*pad, W + 2*pad).

        Raises:
            TypeError: ``images`` is no uint8 tensor.
            ValueError: It has another shape, ``draws`` are missing or do not fit, or permutation or
                ``mean`` do not fit the images.
        """
        check_tensors(images=images)
        if images.dtype != torch.uint8:
            raise TypeError(f"images are {images.dtype}; give torch.uint8")
        if images.dim() != 4:
            raise ValueError(f"images have shape {tuple(images.shape)}; give (B, C, H, W)")
        batch, channels, height, width = images.shape
        if self.mean is not None and len(self.mean) not in (1, channels):
            raise ValueError(
                f"mean and std have {len(self.mean)} values and the images {channels} channels; "
                "give one value a channel, or one for all"
            )
        height, width = height + 2 * self.pad, width + 2 * self.pad
        if self.pad or self.crop:
            images = F.pad(images, [self.pad + self.crop] * 4)
        if self.random:
            if not isinstance(draws, Tensor) or draws.shape != (batch, 3):
                raise ValueError(
                    f"draws are {shown(draws)} for {batch} images that are cropped or flipped at "
                    f"random; give ({batch}, 3) of draws()"
                )
            if draws.dtype != torch.int64:
                raise TypeError(f"draws are {draws.dtype}; give torch.int64 of draws()")
            images = images.flatten(2).gather(2, self._source(draws, height, width, channels))
        for name, table in (("source", self.source), ("permutation", self.permutation)):
            if table is None:
                continue
            if table.numel() != channels * height * width:
                raise ValueError(
                    f"the {name} has {table.numel()} entries and the padded image "
                    f"{channels * height * width}; they must be equal"
                )
            places = table if name == "permutation" else table.clamp_min(0)
            # gather is several times faster than index_select on a CPU.
            images = images.reshape(batch, -1).gather(1, places.expand(batch, -1))
            if name == "source":
                images = images * (table >= 0)
        x = images.reshape(batch, channels, height, width).to(torch.float32).div_(255)
        if self.mean is not None and self.std is not None:
            x.sub_(self.mean).div_(self.std)
        return x

    def _source(self, draws: Tensor, height: int, width: int, channels: int) -> Tensor:
        """Return for each output pixel the flat place in the padded image, (B, C, height*width)."""
        rows = torch.arange(height, device=draws.device)
        columns = torch.arange(width, device=draws.device)
        top, left, mirrored = draws[:, :, None].unbind(1)
        columns = columns + mirrored * (width - 1 - 2 * columns)
        flat = ((rows + top) * (width + 2 * self.crop))[:, :, None] + (columns + left)[:, None, :]
        return flat.flatten(1)[:, None, :].expand(-1, channels, -1)


def cifar_options(
    augment: bool,
    normalize: bool,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> dict[str, Any]:
    """Return the options of the published runs on CIFAR, for a builder of scenarios.

    Args:
        augment: Random crop to 32x32 with padding 4, and random horizontal flip.
        normalize: By the mean and the standard deviation.
        mean, std: Of the channels. Default: ImageNet's.
    """
    crops = check_value("augment", bool, augment)
    scales = check_value("normalize", bool, normalize)
    return {
        "crop": 4 if crops else 0,
        "flip": crops,
        "mean": mean if scales else None,
        "std": std if scales else None,
    }
