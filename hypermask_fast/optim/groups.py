"""The options of a parameter group of FactoredAdam: their checks, and what they come to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError
from hypermask_fast.head.adam import AdamOptions
from hypermask_fast.head.checks import check_adam_options
from hypermask_fast.optim.factored_grad import FactoredGrad

OWN_OPTIONS = ("moments_dtype", "row_sparse", "step_in_backward", "capturable")
"""Those that belong to this program and machine, not to a state that is loaded."""


def check_group(group: dict[str, Any]) -> None:
    """Raise ConfigError where an option has a value that cannot be used."""
    check_adam_options(group)
    lr, betas = group["lr"], group["betas"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ConfigError(f"lr has shape {tuple(lr.shape)}; give a number or a 0-d tensor")
    for name in ("lr", "eps", "weight_decay"):
        if not group[name] >= 0:
            raise ConfigError(f"{name} is {group[name]}; give a number that is not negative")
    if len(betas) != 2 or not all(isinstance(b, (int, float)) and 0 <= b < 1 for b in betas):
        raise ConfigError(f"betas are {betas}; give two numbers in [0, 1)")
    for name in ("amsgrad", "differentiable"):
        if group[name]:
            raise ConfigError(
                f"{name} is True, which FactoredAdam does not have; leave it out, or use "
                "torch.optim.Adam or AdamW"
            )
    if group["foreach"] and group["fused"]:
        raise ConfigError("foreach and fused are both True; choose one, or None for the faster")
    if group["moments_dtype"] == torch.bfloat16:
        # A name, so that the group can be saved as JSON.
        group["moments_dtype"] = "bfloat16"
    if group["moments_dtype"] not in (None, "bfloat16"):
        raise ConfigError(
            f"moments_dtype is {group['moments_dtype']}; give torch.bfloat16, or None for the "
            "dtype of the parameter"
        )


def takes_factors(p: Tensor, group: dict[str, Any]) -> bool:
    """Return whether a parameter's gradient is used as its factors."""
    return (
        isinstance(p.grad, FactoredGrad)
        and p.grad.is_factored
        and not group["row_sparse"]
        and p.is_contiguous()
        and p.dtype in (torch.float32, torch.float64)
    )


def on_device(p: Tensor, group: dict[str, Any]) -> bool:
    """Return whether the scalars of an update of factors stay on the device, never read back."""
    return group["capturable"] or p.device.type != "cpu"


def adam_options(
    p: Tensor, group: dict[str, Any], step: Tensor, finite: Tensor | None
) -> AdamOptions:
    """Return the options of an update of factors.

    Args:
        p: The parameter.
        group: Its group.
        step: Its number of this update, on its device where :func:`on_device`.
        finite: As in :class:`AdamOptions`; None for True.

    Raises:
        ConfigError: The learning rate is a tensor on another device.
    """
    lr, stays = group["lr"], on_device(p, group)
    if stays and isinstance(lr, Tensor) and lr.device != p.device:
        raise ConfigError(
            f"lr is a tensor on {lr.device} and the parameters are on {p.device}, where each step "
            "would wait for it; make it there, or give a number"
        )
    return AdamOptions(
        lr=lr if stays else float(lr),
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        decoupled=group["decoupled_weight_decay"],
        step=step if stays else float(step),
        maximize=group["maximize"],
        finite=finite,
    )
