"""Masked products: by the kernels where they were measured to be faster, else by PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.backends.choice import resolve
from hypermask_fast.masks.checks import check_conv2d, check_linear
from hypermask_fast.masks.types import Mask
from hypermask_fast.reference import Geometry


def _linear_is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels were measured to be faster than ``W * mask`` and a plain product."""
    from hypermask_fast.kernels import tuning

    if not tuning.knows(x.device):
        return False
    from hypermask_fast.kernels.layers.linear import masked_linear_route

    gradients = torch.is_grad_enabled()
    route = masked_linear_route(x.shape, weight.shape, x.dtype, x.device, backward=gradients)
    return route == "fused"


def _conv2d_is_faster(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    from hypermask_fast.kernels import tuning

    if not tuning.knows(x.device):
        return False
    from hypermask_fast.kernels.layers.conv2d import masked_conv2d_route
    from hypermask_fast.kernels.layouts import in_channels_last

    shape, last = (x if x.dim() == 4 else x[None]).shape, x.dim() == 4 and in_channels_last(x)
    route = masked_conv2d_route(shape, weight.shape, *geometry, x.dtype, x.device, last)
    return route == "fused"


def masked_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Mask, *, backend: str | None = None
) -> Tensor:
    """Return ``x (W * mask)^T + b * mask``; see :func:`hypermask_fast.reference.masked_linear`.

    Args:
        x, weight, bias: Of the layer.
        mask: Its mask.
        backend: As in :mod:`hypermask_fast.functional`.

    Raises:
        ValueError, TypeError: The input does not fit the weight.
    """
    check_linear(x, weight)
    if resolve("masked_linear", x, backend, lambda: _linear_is_faster(x, weight)) == "triton":
        from hypermask_fast.layers import fused

        return fused.masked_linear(x, weight, bias, mask)
    return reference.masked_linear(x, weight, bias, *mask)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Mask,
    geometry: Geometry,
    *,
    backend: str | None = None,
) -> Tensor:
    """Return x convolved with ``W * mask``; see :func:`hypermask_fast.reference.masked_conv2d`.

    Args:
        x, weight, bias: Of the layer.
        mask: Its mask.
        geometry: Stride, padding, dilation and groups.
        backend: As in :mod:`hypermask_fast.functional`.

    Raises:
        ValueError, TypeError: The input or the geometry does not fit the weight.
    """
    check_conv2d(x, weight, geometry)

    def faster() -> bool:
        return _conv2d_is_faster(x, weight, geometry)

    if resolve("masked_conv2d", x, backend, faster) == "triton":
        from hypermask_fast.layers import fused

        return fused.masked_conv2d(x, weight, bias, mask, geometry)
    return reference.masked_conv2d(x, weight, bias, *mask, *geometry)
