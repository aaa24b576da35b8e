"""Parameters as the next step of Adam would make them, for a while and without a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from hypermask_fast.backends.precision import full_precision
from hypermask_fast.errors import ConfigError
from hypermask_fast.head.adam import AdamOptions
from hypermask_fast.head.ahead import shifted
from hypermask_fast.head.tiles import tiles_of
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.optim.factored_grad import FactoredGrad
from hypermask_fast.optim.groups import takes_factors

_ADAMS = (FactoredAdam, torch.optim.Adam, torch.optim.AdamW)


def check_lookahead(optimizer: Optimizer) -> None:
    """Raise ConfigError where the look-ahead of an optimizer is not known."""
    usable = isinstance(optimizer, _ADAMS)
    if usable and not any(group.get("amsgrad") for group in optimizer.param_groups):
        return
    kind = f"{type(optimizer).__name__} with amsgrad=True" if usable else type(optimizer).__name__
    raise ConfigError(
        f"the look-ahead of a {kind} is not known; use FactoredAdam, torch.optim.Adam or AdamW, or "
        "lookahead=False"
    )


def _options(group: dict[str, Any], step: Any) -> AdamOptions:
    return AdamOptions(
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        decoupled=bool(group.get("decoupled_weight_decay")),
        step=step,
        maximize=bool(group["maximize"]),
    )


@torch.no_grad()
def lookahead(optimizer: Optimizer, p: Tensor) -> Tensor:
    """Return a parameter as the next step would nearly make it, from its gradient and state.

    The step is :func:`hypermask_fast.head.ahead.shifted`; nothing is changed. The gradient of a
    factored head is formed a tile at a time.

    Args:
        optimizer: FactoredAdam, or PyTorch's Adam or AdamW, that holds ``p``.
        p: A parameter; without a gradient it stays where it is.

    Raises:
        ConfigError: It is another optimizer, or does not hold ``p``.
    """
    check_lookahead(optimizer)
    group = next((g for g in optimizer.param_groups if any(q is p for q in g["params"])), None)
    if group is None:
        raise ConfigError(
            f"a parameter of shape {tuple(p.shape)} is none of the optimizer's, so its step is not "
            "known; give the optimizer that was made for it"
        )
    grad = p.grad
    if grad is None:
        return p.detach().clone()
    state = optimizer.state.get(p, {})
    step = state["step"] + 1 if state else 1
    if isinstance(step, Tensor) and p.device.type == "cpu":
        step = float(step)
    moments = [state[name] for name in ("exp_avg", "exp_avg_sq")] if state else []
    options = _options(group, step)
    if not isinstance(grad, FactoredGrad):
        return shifted(p, grad, moments, options)
    if not takes_factors(p, {"row_sparse": False, **group}):
        return shifted(p, grad.to_dense(), moments, options)
    found = torch.empty_like(p)
    with full_precision(p.device):
        for rows in tiles_of(p):
            tile = grad.dz[:, rows].t() @ grad.hidden
            found[rows] = shifted(p[rows], tile, [m[rows] for m in moments], options)
    return found


@contextmanager
def ahead(optimizer: Optimizer, params: Sequence[Tensor]) -> Iterator[None]:
    """Let parameters be their :func:`lookahead` inside a ``with`` block, and then again themselves.

    What is computed there adds its gradients, taken at the shifted point, to ``.grad``. Nothing is
    copied: the parameters hold other memory for a while.
    """
    there = [lookahead(optimizer, p) for p in params]
    before = [p.data for p in params]
    try:
        for p, value in zip(params, there, strict=True):
            p.data = value
        del there, value
        yield
    finally:
        for p, value in zip(params, before, strict=True):
            p.data = value
