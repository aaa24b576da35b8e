"""Linear layers under the masks of several tasks at once, on the kernels; forward only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from hypermask_fast.masks.types import Mask


class TaskMasks(NamedTuple):
    """The masks of T tasks over a layer's own weights.

    Attributes:
        mask: Logits and thresholds with an axis of tasks before those of a :class:`Mask`.
        rows: (batch,) integers in [0, T), the mask of each row of the input. None: every row runs
            under every mask, and the layer puts out T * batch rows, those of the first mask first.
    """

    mask: Mask
    rows: Tensor | None


def are_faster(
    weights: Iterable[Tensor], rows: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Return whether the kernels were measured to be faster for rows of one task, in every layer.

    One launch for several tasks does no more than one for each, which is what was measured.

    Args:
        weights: Of the layers, (out, in).
        rows: Of each task.
        dtype: Of the inputs.
        device: Where they are.
    """
    from hypermask_fast.kernels import tuning

    if not tuning.knows(device):
        return False
    from hypermask_fast.kernels.layers.linear import masked_linear_route

    return all(
        masked_linear_route((rows, w.shape[1]), w.shape, dtype, device, backward=False) == "fused"
        for w in weights
    )


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, tasks: TaskMasks) -> Tensor:
    """Return ``x (W * mask)^T + b * mask`` with the masks of each row's task, or of every task.

    Args:
        x: (batch, ..., in).
        weight: (out, in).
        bias: (out,) or None.
        tasks: The masks.

    Returns:
        (batch, ..., out), or (T * batch, ..., out) where every row runs under every mask.
    """
    from hypermask_fast.kernels.layers import linear
    from hypermask_fast.layers.fused import inputs_like_products

    x = inputs_like_products(x)
    if tasks.rows is None:
        return linear.masked_linear_forward(x, weight, bias, *tasks.mask).flatten(0, 1)
    rows = tasks.rows.repeat_interleave(x.shape[1:-1].numel())
    y = linear.masked_linear_mixed(x.flatten(0, -2), rows, weight, bias, *tasks.mask)
    return y.view(*x.shape[:-1], -1)
