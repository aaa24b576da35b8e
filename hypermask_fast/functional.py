"""The operations with checked arguments and a choice of backend.

Each has the arguments of its specification in :mod:`hypermask_fast.reference`, and ``backend``:
"auto", "triton", "reference", or None for the one chosen by :func:`backend` or by the environment
variable ``HYPERMASK_FAST_BACKEND``.
"""

from __future__ import annotations

from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.backends.choice import backend
from hypermask_fast.layers import functional as layers
from hypermask_fast.masks import thresholds
from hypermask_fast.masks.checks import check_floats, check_mask, check_sparsity
from hypermask_fast.masks.types import Mask
from hypermask_fast.reference import Size2

__all__ = ["backend", "mask_threshold", "masked_conv2d", "masked_linear", "semi_binary_mask"]


def mask_threshold(
    logits: Tensor, sparsity: float | Tensor, *, backend: str | None = None
) -> Tensor | None:
    """Return the smallest mask value kept at this sparsity; see :func:`semi_binary_mask`.

    Args:
        logits: z, any shape, at least one element.
        sparsity: Percent in [0, 100]: a number, or a 0-d tensor, which acts as the nearer end
            where it is outside.
        backend: See the module.

    Returns:
        0-d tensor of the dtype of ``logits``, without gradient; None where the sparsity is the
        number 0, which keeps every entry.

    Raises:
        ValueError: The sparsity is a number outside [0, 100] or a tensor with dimensions, or
            ``logits`` is empty.
        TypeError: ``logits`` is not a floating-point tensor, or the sparsity neither a real number
            nor a tensor of numbers.
        ConfigError: The backend is unknown, or forced and cannot run.
    """
    check_floats("logits", logits)
    check_sparsity(sparsity)
    return thresholds.mask_threshold(logits, sparsity, backend=backend)


def semi_binary_mask(
    logits: Tensor, sparsity: float | Tensor = 0.0, *, backend: str | None = None
) -> Tensor:
    """Return the semi-binary mask of one tensor: ``|tanh z|``, the smallest ``sparsity`` % zero.

    See :func:`hypermask_fast.reference.semi_binary_mask` for its gradient.

    Args:
        logits: z, any shape, at least one element.
        sparsity: Percent in [0, 100]; the mask values below this percentile become 0. Default 0.
        backend: See the module.

    Raises:
        ValueError, TypeError, ConfigError: As :func:`mask_threshold`.
    """
    return reference.semi_binary_mask(logits, mask_threshold(logits, sparsity, backend=backend))


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_logits: Tensor,
    bias_logits: Tensor | None = None,
    weight_threshold: Tensor | None = None,
    bias_threshold: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Return ``x (W * mask)^T + b * mask``; see :func:`hypermask_fast.reference.masked_linear`.

    Raises:
        ValueError, TypeError: A shape, device or dtype does not fit.
        ConfigError: The backend is unknown, or forced and cannot run.
    """
    mask = Mask(weight_logits, bias_logits, weight_threshold, bias_threshold)
    check_mask(weight, bias, mask)
    return layers.masked_linear(x, weight, bias, mask, backend=backend)


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
    *,
    backend: str | None = None,
) -> Tensor:
    """Return x convolved with ``W * mask``; see :func:`hypermask_fast.reference.masked_conv2d`.

    Raises:
        ValueError, TypeError: A shape, device, dtype or the geometry does not fit.
        ConfigError: The backend is unknown, or forced and cannot run.
    """
    mask = Mask(weight_logits, bias_logits, weight_threshold, bias_threshold)
    check_mask(weight, bias, mask)
    geometry = (stride, padding, dilation, groups)
    return layers.masked_conv2d(x, weight, bias, mask, geometry, backend=backend)
