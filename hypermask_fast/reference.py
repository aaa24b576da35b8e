"""The specification: every operation in plain PyTorch, differentiable, for any dtype and device.

Kernels are tested against these functions, and everything runs on them where there is no kernel.
Notation: z mask logits, theta target weights, N the number of entries of all target tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Size2 = int | tuple[int, ...]
Geometry = tuple[Size2, Size2 | str, Size2, int]
"""Stride, padding, dilation and groups of a convolution, as in ``torch.nn.functional.conv2d``."""


def _masked(weight: Tensor, logits: Tensor, threshold: Tensor | None) -> Tensor:
    # Masks of float32 logits may multiply bfloat16 weights: one rounding, to the weights' dtype.
    return (weight * semi_binary_mask(logits, threshold)).to(weight.dtype)


def _masked_bias(
    bias: Tensor | None, logits: Tensor | None, threshold: Tensor | None
) -> Tensor | None:
    return bias if bias is None or logits is None else _masked(bias, logits, threshold)


def mask_logits(weight: Tensor, bias: Tensor | None, hidden: Tensor) -> Tensor:
    """Return the mask logits of several tasks, z = hidden A^T + b.

    Args:
        weight: A (N, H), the hypernetwork's linear head.
        bias: b (N,), or None.
        hidden: (k, H), the trunk's output for k task embeddings.

    Returns:
        (k, N).
    """
    return F.linear(hidden, weight, bias)


@torch.no_grad()
def percentile(values: Tensor, p: float | Tensor) -> Tensor:
    """Return the p-th percentile of all elements, linearly interpolated between order statistics.

    The position ``p * (n - 1) / 100`` and the interpolation are float64 (as in the torchpercentile
    library of the published code), the result has the dtype of ``values``. Unlike
    ``torch.quantile`` there is no limit on the number of elements. NaN sorts above every number.

    Args:
        values: Any shape, at least one element.
        p: Percent in [0, 100]: a number, or a 0-d tensor, which is not read back to the host and
            acts as the nearer end where it is outside.

    Returns:
        0-d tensor, without gradient.

    Raises:
        ValueError: There is no element, or p is a number outside [0, 100].
    """
    # Under torch.jit.trace sizes are tensors.
    count = int(values.numel())
    if not count:
        raise ValueError(
            f"values has shape {tuple(values.shape)}; a percentile needs at least one element"
        )
    flat, last = values.flatten(), count - 1
    # Multiplied first: p / 100 would miss an order statistic that is the percentile exactly.
    if isinstance(p, Tensor):
        position = p.to(values.device, torch.float64) * last / 100
        places = torch.stack((position.floor(), position.ceil())).long().clamp(0, last)
        low, high = flat.sort().values[places].double().unbind()
        part = position - position.floor()
    else:
        if not 0 <= p <= 100:
            raise ValueError(f"p is {p}; give a percentage in [0, 100]")
        place = p * last / 100
        below, above = math.floor(place), math.ceil(place)
        low, high = _order_statistics(flat, count, below, above).double().unbind()
        # Filled on the device: a copy from the host would break the capture of a CUDA graph.
        part = torch.full_like(low, place - below)
    # The direction of lerp is chosen by the fraction, so the result never leaves [low, high].
    return torch.lerp(low, high, part).to(values.dtype)


def _order_statistics(flat: Tensor, total: int, below: int, above: int) -> Tensor:
    """Return two neighbouring order statistics (2,) of ``total`` numbers, without a full sort."""
    smallest = 2 * above < total
    count = above + 1 if smallest else total - below
    side = flat.topk(count, largest=not smallest, sorted=False).values
    pair = side.topk(1 + above - below, largest=smallest).values
    return torch.stack((pair[-1], pair[0]) if smallest else (pair[0], pair[-1]))


def mask_threshold(logits: Tensor, p: float | Tensor) -> Tensor:
    """Return the smallest mask value that survives: the p-th percentile of ``|tanh(logits)|``.

    The percentile is formed in tanh space, where float32 values saturate; selecting on ``|z|``
    would keep other entries. Arguments, errors and gradient as in :func:`percentile`.
    """
    return percentile(logits.detach().tanh().abs(), p)


def semi_binary_mask(logits: Tensor, threshold: Tensor | None = None) -> Tensor:
    """Return ``|tanh z|`` where it is at least ``threshold``, else 0 (HyperMask, algorithm 1).

    Kept entries stay real-valued in [0, 1]; their gradient is sign(z) (1 - tanh(z)^2), that of
    removed entries 0. NaN stays NaN.

    Args:
        logits: z, any shape.
        threshold: 0-d, of :func:`mask_threshold`; None keeps every entry, as p = 0 does.
    """
    mask = logits.tanh().abs()
    # "not below" rather than "at least": a NaN must not turn into a removed entry.
    return mask if threshold is None else mask.masked_fill(mask < threshold, 0)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_logits: Tensor,
    bias_logits: Tensor | None = None,
    weight_threshold: Tensor | None = None,
    bias_threshold: Tensor | None = None,
) -> Tensor:
    """Return ``x (W * mask)^T + b * mask``.

    The products have the dtype of the weights, whatever that of the logits.

    Args:
        x: (..., in).
        weight, weight_logits: (out, in).
        bias: (out,) or None.
        bias_logits: (out,), or None to use the bias unmasked.
        weight_threshold, bias_threshold: 0-d, as in :func:`semi_binary_mask`.

    Returns:
        (..., out).
    """
    w = _masked(weight, weight_logits, weight_threshold)
    return F.linear(x, w, _masked_bias(bias, bias_logits, bias_threshold))


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_logits: Tensor,
    bias_logits: Tensor | None = None,
    weight_threshold: Tensor | None = None,
    bias_threshold: Tensor | None = None,
    stride: Size2 = 1,
    padding: Size2 | str = 0,
    dilation: Size2 = 1,
    groups: int = 1,
) -> Tensor:
    """Return the convolution of x with ``W * mask`` plus ``b * mask``, in the dtype of W.

    Args:
        x: (batch, in, height, width) or (in, height, width).
        weight, weight_logits: (out, in / groups, kernel height, kernel width).
        bias, bias_logits, weight_threshold, bias_threshold: As in :func:`masked_linear`.
        stride, padding, dilation, groups: As in ``torch.nn.functional.conv2d``.
    """
    w = _masked(weight, weight_logits, weight_threshold)
    b = _masked_bias(bias, bias_logits, bias_threshold)
    return F.conv2d(x, w, b, stride, padding, dilation, groups)


def mask_weights(
    weights: Sequence[Tensor],
    logits: Sequence[Tensor],
    thresholds: Sequence[Tensor | None],
) -> tuple[list[Tensor], list[Tensor]]:
    """Return ``theta_i * mask_i`` and ``mask_i`` for every tensor of a network.

    Args:
        weights: The target tensors.
        logits: Their mask logits, of the same shapes.
        thresholds: A 0-d threshold or None for each, as in :func:`semi_binary_mask`.
    """
    masks = [semi_binary_mask(z, q) for z, q in zip(logits, thresholds, strict=True)]
    return [(w * m).to(w.dtype) for w, m in zip(weights, masks, strict=True)], masks


def output_residuals(logits: Tensor, targets: Tensor) -> Tensor:
    """Return ``logits - targets``, but 0 where a logit rounds to a target of a narrower dtype.

    So targets in bfloat16 leave residuals of exactly 0 where nothing changed.

    Args:
        logits, targets: Of one shape.
    """
    residuals = logits - targets
    if targets.dtype == logits.dtype:
        return residuals
    return residuals.masked_fill(logits.to(targets.dtype) == targets, 0)


def output_regularizer(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over earlier tasks of ``||z_j - z_j*||^2``, a sum over all entries.

    HyperMask divides this mean by the number of earlier tasks once more (its factor is
    beta / t^2 on the sum); that division belongs to the method.

    Args:
        logits, targets: (t, N), t >= 1; targets of the logits' dtype, or of a narrower one as in
            :func:`output_residuals`.

    Returns:
        0-d tensor.
    """
    return output_residuals(logits, targets).square().sum() / logits.shape[0]


def l1_drift(
    weights: Iterable[Tensor], previous: Iterable[Tensor], masks: Iterable[Tensor] | None = None
) -> Tensor:
    """Return ``sum_i ||(theta_i - theta_i') * mask_i||_1``, a sum, not a mean.

    Args:
        weights: Target tensors, unmasked.
        previous: Their values at the end of the previous task.
        masks: Masks to multiply with, or None.

    Returns:
        0-d tensor.
    """
    drifts = [w - old for w, old in zip(weights, previous, strict=True)]
    if masks is not None:
        drifts = [drift * m for drift, m in zip(drifts, masks, strict=True)]
    return torch.stack([drift.abs().sum() for drift in drifts]).sum()


def top_k_mask(scores: Tensor, sizes: Sequence[int], dropped: Sequence[int]) -> Tensor:
    """Return which scores of each tensor are kept, its largest by magnitude, by a stable sort.

    Args:
        scores: (N,), those of all tensors, one after the other.
        sizes: Number of entries of each tensor.
        dropped: For each tensor how many are not kept; of equal ones those of the lowest indices.

    Returns:
        bool (N,).
    """
    masks = []
    for part, count in zip(scores.split([*sizes]), dropped, strict=True):
        order = part.abs().argsort(stable=True)
        masks.append(torch.ones_like(part, dtype=torch.bool).index_fill(0, order[:count], False))
    return torch.cat(masks)
