"""The threshold of a mask: a percentile of its values, by the kernels or by PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.backends.choice import uses_kernels
from hypermask_fast.kernels.constants import constant


def mask_threshold(
    logits: Tensor, sparsity: float | Tensor, *, backend: str | None = None
) -> Tensor | None:
    """Return the smallest mask value kept; see :func:`hypermask_fast.functional.mask_threshold`."""
    with_kernel = uses_kernels("mask_threshold", logits, backend, entries=logits.numel())
    if not isinstance(sparsity, Tensor) and sparsity == 0:
        return None
    if not with_kernel or not logits.numel():
        return reference.mask_threshold(logits, sparsity)
    from hypermask_fast.kernels import ops

    flat = logits.detach().flatten()
    percent = sparsity_on(sparsity, logits.device)
    values, _ = ops.mask_thresholds(flat, [logits.numel()], percent, [True])
    return values[0]


def task_thresholds(
    logits: Tensor, sizes: Sequence[int], sparsity: float | Tensor, masked: Sequence[bool]
) -> Tensor | None:
    """Return the thresholds of all tensors of a network for several tasks.

    Args:
        logits: (T, N), those of all tensors for each task.
        sizes: Number of elements of each tensor.
        sparsity: Percent in [0, 100].
        masked: For each tensor whether it has a threshold.

    Returns:
        (T, tensors); of no meaning where a tensor has none. None where every entry is kept.
    """
    count = len(logits)
    with_kernel = uses_kernels("mask_threshold", logits, entries=logits.numel())
    if not isinstance(sparsity, Tensor) and sparsity == 0:
        return None
    if with_kernel:
        from hypermask_fast.kernels import ops

        percent = sparsity_on(sparsity, logits.device)
        of_all = (logits.flatten(), [*sizes] * count, percent, [*masked] * count)
        return ops.mask_thresholds(*of_all)[0].view(count, -1)
    none = logits.new_full((), -torch.inf)
    rows = [
        torch.stack(
            [
                reference.mask_threshold(z, sparsity) if is_masked else none
                for z, is_masked in zip(row.split([*sizes]), masked, strict=True)
            ]
        )
        for row in logits
    ]
    return torch.stack(rows)


def sparsity_on(sparsity: float | Tensor, device: torch.device) -> Tensor:
    """Return a sparsity as the 0-d float64 tensor that the kernels read."""
    if isinstance(sparsity, Tensor):
        return sparsity.to(device, torch.float64)
    return constant(sparsity, device, torch.float64)
