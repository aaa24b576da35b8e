"""PyTorch's Adam for parameters with a dense gradient, whole steps of it left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.optimizer import Optimizer

from hypermask_fast.optim.factored_grad import FactoredGrad
from hypermask_fast.optim.in_backward import Verdict


def laid_out(value: Tensor, p: Tensor) -> Tensor:
    """Return a moment with the strides of its parameter, as a fused step takes them to be."""
    if value.shape != p.shape or value.stride() == p.stride():
        return value
    return torch.empty_like(p, dtype=value.dtype).copy_(value)


def _dense_grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad.to_dense() if isinstance(p.grad, FactoredGrad) else p.grad


def _fuses(params: list[Tensor], group: dict[str, Any]) -> bool:
    if group["fused"] is not None or group["foreach"] is not None:
        return bool(group["fused"])
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)


def fuses_on_device(params: list[Tensor], group: dict[str, Any]) -> bool:
    """Return whether one launch steps parameters on a GPU, whose steps are counted before."""
    return (
        bool(params)
        and _fuses(params, group)
        and all(p.device.type != "cpu" and not p.is_complex() for p in params)
    )


def count(parameters: Sequence[tuple[Tensor, dict[str, Tensor]]], verdict: Verdict | None) -> None:
    """Count a step of parameters on GPUs, with their states, where it is taken."""
    on_each: dict[torch.device, list[Tensor]] = {}
    for p, state in parameters:
        state["step"] = state["step"].to(p.device, torch.float32)
        on_each.setdefault(p.device, []).append(state["step"])
    for device, steps in on_each.items():
        taken = 1 if verdict is None else [verdict.taken.to(device)] * len(steps)
        torch._foreach_add_(steps, taken)


def _fused(lists: list[list[Tensor]], group: dict[str, Any], verdict: Verdict | None) -> None:
    """Step parameters, gradients, two moments and counted steps, as PyTorch's fused Adam does."""
    step = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    together = Optimizer._group_tensors_by_device_and_dtype(lists)  # type: ignore[arg-type]
    for (device, _), (each, _) in together.items():
        params, grads, exp_avgs, exp_avg_sqs, steps = cast("list[list[Tensor]]", each)
        lr = group["lr"]
        moves = isinstance(lr, Tensor) and lr.device.type != "cpu"
        step(
            *(params, grads, exp_avgs, exp_avg_sqs, [], steps),
            amsgrad=False,
            lr=lr.to(device) if moves else lr,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
            found_inf=None if verdict is None else verdict.skipped.to(device),
        )


def step_dense(
    params: list[Tensor],
    states: list[dict[str, Tensor]],
    group: dict[str, Any],
    verdict: Verdict | None = None,
    *,
    counted: bool = False,
) -> None:
    """Update parameters of a group of FactoredAdam that have a gradient.

    Args:
        params: The parameters.
        states: Their step counts and moments.
        group: Their group.
        verdict: Whether the step is taken; where not, nothing changes. Default: it is.
        counted: Whether it was counted before. Default False.
    """
    fused = _fuses(params, group)
    if fuses_on_device(params, group):
        if not counted:
            count(list(zip(params, states, strict=True)), verdict)
    elif fused or group["capturable"]:
        for p, state in zip(params, states, strict=True):
            count_dtype = torch.float32 if fused else state["step"].dtype
            state["step"] = state["step"].to(p.device, count_dtype)
    grads = [_dense_grad(p) for p in params]
    moments = {
        # bfloat16 moments of a parameter that has a dense gradient this time.
        name: [state[name].to(p.dtype) for p, state in zip(params, states, strict=True)]
        for name in ("exp_avg", "exp_avg_sq")
    }
    steps = [state["step"] for state in states]
    # What is to be put back where the step is not to be taken.
    kept: list[tuple[Tensor, Tensor]] = []
    if fuses_on_device(params, group):
        _fused([params, grads, moments["exp_avg"], moments["exp_avg_sq"], steps], group, verdict)
    else:
        if verdict is not None:
            for tensors in (params, *moments.values(), steps):
                kept += [(x, x.clone()) for x in tensors]
        _adam(params, grads, moments, steps, group, fused)
    for x, before in kept:
        assert verdict is not None
        x.copy_(torch.where(verdict.finite, x, before))
    for name, tensors in moments.items():
        for state, moment in zip(states, tensors, strict=True):
            if moment is not state[name]:
                state[name].copy_(moment)


def _adam(
    params: list[Tensor],
    grads: list[Tensor],
    moments: dict[str, list[Tensor]],
    steps: list[Tensor],
    group: dict[str, Any],
    fused: bool,
) -> None:
    adam(
        params,
        grads,
        moments["exp_avg"],
        moments["exp_avg_sq"],
        [],
        steps,
        foreach=bool(group["foreach"]),
        capturable=group["capturable"],
        fused=fused,
        has_complex=any(p.is_complex() for p in params),
        decoupled_weight_decay=group["decoupled_weight_decay"],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )
