"""Checks of what users give to mask a layer; free under compile."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from hypermask_fast.errors import shown
from hypermask_fast.masks.types import Mask
from hypermask_fast.modes import has_values
from hypermask_fast.reference import Geometry, Size2

# What most calls are given: asking the abstract classes takes longer.
_NUMBERS = (float, int)
_INTEGERS = (int, torch.SymInt)


def check_floats(name: str, value: Tensor) -> None:
    """Raise TypeError where a value is no floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; give a floating-point tensor")
    if not value.is_floating_point():
        raise TypeError(f"{name} is {value.dtype}; give a floating-point tensor")


def _check_gated(name: str, value: Tensor, logits: Tensor, threshold: Tensor | None) -> None:
    check_floats(f"{name}_logits", logits)
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
    if not threshold.is_floating_point() or threshold.device != value.device:
        raise TypeError(
            f"{name}_threshold is {threshold.dtype} on {threshold.device}; give the tensor of "
            f"mask_threshold(), on {value.device}"
        )


def _check_bias(bias: Tensor, weight: Tensor) -> None:
    check_floats("bias", bias)
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)} and the weight {tuple(weight.shape)}; give "
            f"{tuple(weight.shape[:1])}, a number for each output"
        )
    if bias.dtype != weight.dtype or bias.device != weight.device:
        raise TypeError(
            f"bias is {bias.dtype} on {bias.device} and the weight {weight.dtype} on "
            f"{weight.device}; convert one of them"
        )


def check_mask(weight: Tensor, bias: Tensor | None, mask: Mask) -> None:
    """Raise ValueError or TypeError where a mask does not fit its layer, or the bias the weight."""
    check_floats("weight", weight)
    if bias is not None:
        _check_bias(bias, weight)
    _check_gated("weight", weight, mask.weight, mask.weight_threshold)
    if mask.bias is None:
        if mask.bias_threshold is not None:
            raise ValueError(
                f"bias_threshold is {mask.bias_threshold} and bias_logits is None; give both or "
                "neither"
            )
    elif bias is None:
        raise ValueError(
            f"bias_logits has shape {tuple(mask.bias.shape)} and the bias is None; "
            "leave bias_logits out"
        )
    else:
        _check_gated("bias", bias, mask.bias, mask.bias_threshold)


def check_sparsity(sparsity: float | Tensor) -> None:
    """Raise where a sparsity is no percentage.

    Raises:
        ValueError: It is outside [0, 100], looked at on a CPU, or a tensor with dimensions.
        TypeError: It is neither a real number nor a tensor of numbers.
    """
    if isinstance(sparsity, Tensor):
        if sparsity.dim():
            raise ValueError(f"sparsity has shape {tuple(sparsity.shape)}; give a 0-d tensor")
        if sparsity.dtype == torch.bool or sparsity.is_complex():
            raise TypeError(f"sparsity is {sparsity.dtype}; give a percentage in [0, 100]")
        if has_values(sparsity) and not 0 <= float(sparsity) <= 100:
            raise ValueError(f"sparsity is {float(sparsity)}; give a percentage in [0, 100]")
        return
    if type(sparsity) not in _NUMBERS and (
        isinstance(sparsity, bool) or not isinstance(sparsity, Real)
    ):
        raise TypeError(
            f"sparsity is {shown(sparsity)}, a {type(sparsity).__name__}; give a percentage, a "
            "number in [0, 100]"
        )
    if not 0 <= sparsity <= 100:
        raise ValueError(f"sparsity is {sparsity}; give a percentage in [0, 100]")


def check_input(x: Tensor, weight: Tensor) -> None:
    """Raise where the input of a masked layer is no tensor of the weight's dtype and device.

    Autocast converts it, and its dtype may be another then.

    Raises:
        TypeError: It is no tensor, or has another dtype.
        ValueError: It is on another device.
    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"x is a {type(x).__name__}; give a tensor: torch.as_tensor makes one of an array or a "
            "list"
        )
    if x.device != weight.device:
        raise ValueError(
            f"x is on {x.device} and the weight on {weight.device}; move them to one device"
        )
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"x is {x.dtype} and the weight {weight.dtype}; convert one of them")


def check_linear(x: Tensor, weight: Tensor) -> None:
    """Raise ValueError or TypeError where an input does not fit a linear layer's weight."""
    check_input(x, weight)
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; give (out, in)")
    if not x.dim() or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and the weight {tuple(weight.shape)}; give "
            f"(..., {weight.shape[1]})"
        )


def _is_integer(value: object) -> bool:
    return type(value) is int or (isinstance(value, _INTEGERS) and not isinstance(value, bool))


def _check_sizes(name: str, sizes: Size2, least: int) -> tuple[int, int]:
    if isinstance(sizes, (tuple, list)):
        pair = tuple(sizes) * 2 if len(sizes) == 1 else tuple(sizes)
    else:
        pair = (sizes, sizes)
    if len(pair) != 2 or not (_is_integer(pair[0]) and _is_integer(pair[1])):
        raise TypeError(f"{name} is {shown(sizes)}; give an integer or two")
    if min(pair) < least:
        raise ValueError(f"{name} is {shown(sizes)}; give at least {least}")
    return pair


def check_conv2d(x: Tensor, weight: Tensor, geometry: Geometry) -> None:
    """Raise ValueError or TypeError where an input and a geometry do not fit a convolution."""
    check_input(x, weight)
    stride, padding, dilation, groups = geometry
    if weight.dim() != 4:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; give (out, in / groups, height, width)"
        )
    steps, apart = _check_sizes("stride", stride, 1), _check_sizes("dilation", dilation, 1)
    if not _is_integer(groups):
        raise TypeError(f"groups is {shown(groups)}; give an integer")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups is {groups}; it must divide the {weight.shape[0]} outputs")
    around = (0, 0)
    if not isinstance(padding, str):
        around = _check_sizes("padding", padding, 0)
    elif padding not in ("same", "valid"):
        raise ValueError(f"padding is {padding!r}; give integers, 'same' or 'valid'")
    elif padding == "same" and steps != (1, 1):
        raise ValueError(f"padding is 'same' and stride {shown(stride)}; give a stride of 1")
    channels = weight.shape[1] * groups
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, the weight {tuple(weight.shape)} and groups is "
            f"{groups}; give (batch, {channels}, height, width), or that without the batch"
        )
    if padding == "same":
        return
    (height, width), (_, _, rows, columns) = x.shape[-2:], weight.shape
    if height + 2 * around[0] <= apart[0] * (rows - 1) or (
        width + 2 * around[1] <= apart[1] * (columns - 1)
    ):
        raise ValueError(
            f"x has shape {tuple(x.shape)}, smaller than a filter of the weight "
            f"{tuple(weight.shape)} with padding {around} and dilation {apart}; give larger images "
            "or more padding"
        )
