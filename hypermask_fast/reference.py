"""The specification: every operation in plain PyTorch, differentiable, for any dtype and device.

Kernels are tested against these functions, and everything runs on them where there is no kernel.
Notation: z mask logits, theta target weights, N the number of entries of all target tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Size2 = int | tuple[int, int]


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


def percentile(values: Tensor, p: float | Tensor) -> Tensor:
    """Return the p-th percentile of all elements, linearly interpolated between order statistics.

    The position ``p / 100 * (n - 1)`` and the interpolation are float64, the result has the dtype
    of ``values``. Unlike ``torch.quantile`` there is no limit on the number of elements. No
    gradient passes. NaN counts as larger than any number.

    Args:
        values: Any shape, at least one element.
        p: Percent in [0, 100], a number or a 0-d tensor (which is not read back to the host).

    Returns:
        0-d tensor.
    """
    ordered = values.detach().flatten().sort().values
    last = ordered.numel() - 1
    p = torch.as_tensor(p, dtype=torch.float64, device=values.device)
    position = p / 100 * last
    below = position.floor()
    index = torch.stack((below, below + 1)).long().clamp(0, last)
    low, high = ordered[index].double().unbind()
    return (low + (high - low) * (position - below)).to(values.dtype)


def mask_threshold(logits: Tensor, p: float | Tensor) -> Tensor:
    """Return the smallest mask value that survives: the p-th percentile of ``|tanh(logits)|``.

    The percentile is formed in tanh space, where float32 values saturate; selecting on ``|z|``
    would keep other entries.
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

    Args:
        x: (..., in).
        weight, weight_logits: (out, in).
        bias: (out,) or None.
        bias_logits: (out,), or None to use the bias unmasked.
        weight_threshold, bias_threshold: 0-d, as in :func:`semi_binary_mask`.

    Returns:
        (..., out).
    """
    w = weight * semi_binary_mask(weight_logits, weight_threshold)
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
    """Return the convolution of x with ``W * mask`` plus ``b * mask``.

    Args:
        x: (batch, in, height, width) or (in, height, width).
        weight, weight_logits: (out, in / groups, kernel height, kernel width).
        bias, bias_logits, weight_threshold, bias_threshold: As in :func:`masked_linear`.
        stride, padding, dilation, groups: As in ``torch.nn.functional.conv2d``.
    """
    w = weight * semi_binary_mask(weight_logits, weight_threshold)
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
    return [w * m for w, m in zip(weights, masks, strict=True)], masks


def output_regularizer(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over earlier tasks of ``||z_j - z_j*||^2``, a sum over all entries.

    HyperMask divides this mean by the number of earlier tasks once more (its factor is
    beta / t^2 on the sum); that division belongs to the method.

    Args:
        logits, targets: (t, N), t >= 1.

    Returns:
        0-d tensor.
    """
    return (logits - targets).square().sum() / logits.shape[0]


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


def _masked_bias(
    bias: Tensor | None, logits: Tensor | None, threshold: Tensor | None
) -> Tensor | None:
    if bias is None or logits is None:
        return bias
    return bias * semi_binary_mask(logits, threshold)
