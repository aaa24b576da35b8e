"""PyTorch's Adam for parameters with a dense gradient, whole steps of it left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from hypermask_fast.optim.factored_grad import FactoredGrad


def _dense_grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad.to_dense() if isinstance(p.grad, FactoredGrad) else p.grad


def _fuses(params: list[Tensor], group: dict[str, Any]) -> bool:
    if group["fused"] is not None or group["foreach"] is not None:
        return bool(group["fused"])
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)


def step_dense(
    params: list[Tensor],
    states: list[dict[str, Tensor]],
    group: dict[str, Any],
    finite: Tensor | None = None,
) -> None:
    """Update parameters of a group of FactoredAdam that have a gradient.

    Args:
        params: The parameters.
        states: Their step counts and moments.
        group: Their group.
        finite: 0-d bool; where it is False, nothing changes. Default: True.
    """
    fused = _fuses(params, group)
    for p, state in zip(params, states, strict=True):
        if fused:
            state["step"] = state["step"].to(p.device, torch.float32)
        elif group["capturable"]:
            state["step"] = state["step"].to(p.device)
    grads = [_dense_grad(p) for p in params]
    moments = {
        # bfloat16 moments of a parameter that has a dense gradient this time.
        name: [state[name].to(p.dtype) for p, state in zip(params, states, strict=True)]
        for name in ("exp_avg", "exp_avg_sq")
    }
    steps = [state["step"] for state in states]
    found_inf: Tensor | None = None
    # What is to be put back where the step is not to be taken.
    kept: list[tuple[Tensor, Tensor]] = []
    if finite is not None and fused:
        found_inf = finite.logical_not().to(torch.float32)
    elif finite is not None:
        for tensors in (params, *moments.values(), steps):
            kept += [(x, x.clone()) for x in tensors]
    adam(
        params,
        grads,
        moments["exp_avg"],
        moments["exp_avg_sq"],
        [],
        steps,
        found_inf=found_inf,
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
    for x, before in kept:
        assert finite is not None
        x.copy_(torch.where(finite, x, before))
    for name, tensors in moments.items():
        for state, moment in zip(states, tensors, strict=True):
            if moment is not state[name]:
                state[name].copy_(moment)
