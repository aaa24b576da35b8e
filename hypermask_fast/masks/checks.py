"""Checks of what users give to mask a layer; free under compile."""

from __future__ import annotations

from torch import Tensor

from hypermask_fast.masks.types import Mask


def check_logits(name: str, logits: Tensor) -> None:
    """Raise TypeError where logits are no floating-point tensor."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name} is a {type(logits).__name__}; give a floating-point tensor")
    if not logits.is_floating_point():
        raise TypeError(f"{name} is {logits.dtype}; give a floating-point tensor")


def _check_gated(name: str, value: Tensor, logits: Tensor, threshold: Tensor | None) -> None:
    check_logits(f"{name}_logits", logits)
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


def check_mask(weight: Tensor, bias: Tensor | None, mask: Mask) -> None:
    """Raise ValueError or TypeError where a mask does not fit its layer."""
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
    """Raise ValueError where a sparsity is a number outside [0, 100], or no 0-d tensor."""
    if isinstance(sparsity, Tensor):
        if sparsity.dim():
            raise ValueError(f"sparsity has shape {tuple(sparsity.shape)}; give a 0-d tensor")
    elif not 0 <= sparsity <= 100:
        raise ValueError(f"sparsity is {sparsity}; give a percentage in [0, 100]")
