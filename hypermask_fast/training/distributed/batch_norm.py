"""Batch norm by the statistics of all processes' rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from hypermask_fast.methods.sharing import Share
from hypermask_fast.training.distributed.processes import Processes


def has_batch_norm(module: nn.Module) -> bool:
    """Return whether a module has batch norms."""
    return any(isinstance(each, _BatchNorm) for each in module.modules())


def _dims(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _columns(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


class _Normalized(torch.autograd.Function):
    """A batch, normalised by mean and variance over the rows of all processes, and these two."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, eps: float, processes: Processes, share: Share
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = torch.promote_types(x.dtype, torch.float32)
        var, mean = torch.var_mean(x.to(wide), _dims(x), correction=0)
        count = mean.new_full((1,), x.numel() / x.shape[1])
        found = torch.stack(processes.gathered(torch.cat((count, mean, var))))
        counts = found[:, :1]
        total = counts.sum()
        means, variances = found[:, 1:].split(x.shape[1], 1)
        mean = (counts * means).sum(0) / total
        # That of parts: within them, and between them.
        var = (counts * (variances + (means - mean).square())).sum(0) / total
        scale = (var + eps).rsqrt()
        y = (x - _columns(mean, x)) * _columns(scale, x)
        ctx.save_for_backward(y, scale)
        ctx.share, ctx.total, ctx.dtype = share, total, x.dtype
        ctx.mark_non_differentiable(mean, var, total)
        return y, mean, var, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        y, scale = ctx.saved_tensors
        dims = _dims(y)
        wide = grad.to(y.dtype)
        sums = torch.stack((wide.sum(dims), (wide * y).sum(dims)))
        # Losses of processes count by their rows, and this one's gradient is weighted once more.
        (both,) = ctx.share.mean([sums])
        of_mean, of_scale = both / (ctx.share.weight * ctx.total)
        dx = (wide - _columns(of_mean, y) - y * _columns(of_scale, y)) * _columns(scale, y)
        return dx.to(ctx.dtype), None, None, None


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    *,
    processes: Processes,
    share: Share,
) -> Tensor:
    """Return what ``F.batch_norm`` in training gives of the whole batch, for this process's rows.

    The running statistics move as there, alike in all processes.

    Args:
        x, running_mean, running_var, weight, bias, momentum, eps: As in ``F.batch_norm``.
        processes: Those that have rows.
        share: This process's rows.
    """
    y, mean, var, count = _Normalized.apply(x, eps, processes, share)
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean), momentum)
        if running_var is not None:
            running_var.lerp_((var * (count / (count - 1))).to(running_var), momentum)
    if weight is not None:
        y = y * _columns(weight, x)
    if bias is not None:
        y = y + _columns(bias, x)
    return y.to(x.dtype)


class WholeBatchNorm(TorchFunctionMode):
    """In a ``with`` block every batch norm in training has the statistics of all processes' rows.

    Args:
        processes, share: As in :func:`batch_norm`.
    """

    def __init__(self, processes: Processes, share: Share) -> None:
        super().__init__()
        self._processes, self._share = processes, share

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        state = running_mean, running_var, weight, bias
        if not training or self._processes.world == 1:
            return F.batch_norm(input, *state, training, momentum, eps)
        return batch_norm(
            input, *state, momentum, eps, processes=self._processes, share=self._share
        )


def repeated_together(
    module: nn.Module, context: Callable[[], AbstractContextManager[object] | None]
) -> list[RemovableHandle]:
    """Let a module's forwards run in a context, in whatever thread.

    Args:
        module: The module.
        context: Returns it, or None for a forward that needs none.
    """
    entered: list[ExitStack] = []

    def enter(*_: object) -> None:
        stack, found = ExitStack(), context()
        if found is not None:
            stack.enter_context(found)
        entered.append(stack)

    return [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(lambda *_: entered.pop().close(), always_call=True),
    ]
