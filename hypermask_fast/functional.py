"""The operations with checked arguments and a choice of backend.

Each has the arguments of its specification in :mod:`hypermask_fast.reference`, and ``backend``:
"auto", "triton", "reference", or None for the one chosen by :func:`backend` or by the environment
variable ``HYPERMASK_FAST_BACKEND``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.backends.choice import backend, resolve, uses_kernels
from hypermask_fast.reference import Size2

__all__ = ["backend", "mask_threshold", "masked_conv2d", "masked_linear", "semi_binary_mask"]


def _check_logits(name: str, logits: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name} is a {type(logits).__name__}; give a floating-point tensor")
    if not logits.is_floating_point():
        raise TypeError(f"{name} is {logits.dtype}; give a floating-point tensor")


def _check_gated(name: str, value: Tensor, logits: Tensor, threshold: Tensor | None) -> None:
    _check_logits(f"{name}_logits", logits)
    if logits.shape != value.shape:
        raise ValueError(
            f"{name}_logits has shape {tuple(logits.shape)}; it must have the {name}'s shape "
            f"{tuple(value.shape)}"
        )
    if logits.device != value.device:
        raise ValueError(
            f"{name}_logits is on {logits.device} and the {name} on {value.device}; "
            "move them to one device"
        )
    if threshold is None:
        return
    if not isinstance(threshold, Tensor):
        raise TypeError(
            f"{name}_threshold is {threshold!r}; give the 0-d tensor of mask_threshold(), or None"
        )
    if threshold.dim():
        raise ValueError(
            f"{name}_threshold has shape {tuple(threshold.shape)}; "
            "give the 0-d tensor of mask_threshold()"
        )


def check_mask(
    weight: Tensor,
    bias: Tensor | None,
    weight_logits: Tensor,
    bias_logits: Tensor | None,
    weight_threshold: Tensor | None,
    bias_threshold: Tensor | None,
) -> None:
    """Raise ValueError or TypeError where a mask does not fit its layer; free under compile."""
    _check_gated("weight", weight, weight_logits, weight_threshold)
    if bias_logits is None:
        if bias_threshold is not None:
            raise ValueError(
                f"bias_threshold is {bias_threshold} and bias_logits is None; give both or neither"
            )
    elif bias is None:
        raise ValueError(
            f"bias_logits has shape {tuple(bias_logits.shape)} and the bias is None; "
            "leave bias_logits out"
        )
    else:
        _check_gated("bias", bias, bias_logits, bias_threshold)


def _linear_is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels were measured to be faster than ``W * mask`` and a plain product."""
    from hypermask_fast.kernels import tuning

    if not tuning.knows(x.device):
        return False
    from hypermask_fast.kernels.layers.linear import masked_linear_route

    return masked_linear_route(x.shape, weight.shape, x.dtype, x.device) == "fused"


def _conv2d_is_faster(
    x: Tensor, weight: Tensor, geometry: tuple[Size2, Size2 | str, Size2, int]
) -> bool:
    from hypermask_fast.kernels import tuning

    if not tuning.knows(x.device):
        return False
    from hypermask_fast.kernels.layers.conv2d import masked_conv2d_route
    from hypermask_fast.kernels.layouts import in_channels_last

    shape, last = (x if x.dim() == 4 else x[None]).shape, x.dim() == 4 and in_channels_last(x)
    route = masked_conv2d_route(shape, weight.shape, *geometry, x.dtype, x.device, last)
    return route == "fused"


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
        TypeError: ``logits`` is not a floating-point tensor.
    """
    _check_logits("logits", logits)
    if isinstance(sparsity, Tensor):
        if sparsity.dim():
            raise ValueError(f"sparsity has shape {tuple(sparsity.shape)}; give a 0-d tensor")
    elif not 0 <= sparsity <= 100:
        raise ValueError(f"sparsity is {sparsity}; give a percentage in [0, 100]")
    with_kernel = uses_kernels("mask_threshold", logits, backend, entries=logits.numel())
    if not isinstance(sparsity, Tensor) and sparsity == 0:
        return None
    if not with_kernel or not logits.numel():
        return reference.mask_threshold(logits, sparsity)
    from hypermask_fast.kernels import ops

    if not isinstance(sparsity, Tensor):
        # Filled on the device: a copy from the host would break the capture of a CUDA graph.
        sparsity = torch.full((), sparsity, dtype=torch.float64, device=logits.device)
    flat = logits.detach().flatten()
    values, _ = ops.mask_thresholds(flat, [logits.numel()], sparsity.double(), [True])
    return values[0]


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
        ValueError, TypeError: As :func:`mask_threshold`.
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
    """
    check_mask(weight, bias, weight_logits, bias_logits, weight_threshold, bias_threshold)
    args = (x, weight, bias, weight_logits, bias_logits, weight_threshold, bias_threshold)
    if resolve("masked_linear", x, backend, lambda: _linear_is_faster(x, weight)) == "triton":
        from hypermask_fast.layers import fused as masked_layers

        return masked_layers.masked_linear(*args)
    return reference.masked_linear(*args)


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
        ValueError, TypeError: A shape, device or dtype does not fit.
    """
    check_mask(weight, bias, weight_logits, bias_logits, weight_threshold, bias_threshold)
    args = (x, weight, bias, weight_logits, bias_logits, weight_threshold, bias_threshold)
    geometry = (stride, padding, dilation, groups)

    def faster() -> bool:
        return _conv2d_is_faster(x, weight, geometry)

    if resolve("masked_conv2d", x, backend, faster) == "triton":
        from hypermask_fast.layers import fused as masked_layers

        return masked_layers.masked_conv2d(*args, *geometry)
    return reference.masked_conv2d(*args, *geometry)
