"""Passes over a hypernetwork's full head, z = A h + b, that read and write A once.

A (N, H) is about 100 times the network it masks, so a step costs what it moves of A and of its
moments. Each function is one pass, native on a CPU (:mod:`hypermask_fast.native.library`), else PyTorch a
tile of rows at a time. Gradients come as factors, dA = dz^T hidden, which is never formed.

A float32 head on CUDA goes to the kernels; see :mod:`hypermask_fast.head.cuda`.

In the native passes a logit has the same bits in :func:`logits` and :func:`step_rows`, for any
number of embeddings and threads. In PyTorch it has them in the same batch of embeddings: make
targets with all t + 1 of a step, or name the batch by :class:`SampledTargets`. The residual of an
unchanged head is then exactly 0. Against a :class:`FrozenHead` it always is.

Nothing here takes part in autograd or autocast. All tensors share one device and A's dtype,
float32 or float64; only targets and moments may be bfloat16 instead, which are rounded to nearest
even when stored. A wrong shape raises ValueError, as do strides where a copy would be large, and a
wrong dtype raises TypeError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from hypermask_fast.backends.choice import uses_kernels
from hypermask_fast.head import cuda
from hypermask_fast.head.adam import AdamOptions, AdamStep, adam_step
from hypermask_fast.head.checks import (
    check,
    check_contiguous,
    check_frozen,
    check_moments,
    check_sampled,
    check_targets,
    check_weight,
)
from hypermask_fast.head.frozen import FrozenHead, step_frozen
from hypermask_fast.head.tiles import Moments, SampledTargets, logits_tiles, update_tiles
from hypermask_fast.native import library as native
from hypermask_fast.native import threads
from hypermask_fast.optim.factors import full_precision

Targets = Tensor | SampledTargets | FrozenHead
"""What the output regularizer keeps the earlier embeddings' logits near."""


def _takes_kernels(weight: Tensor) -> bool:
    rows, width = weight.shape
    return weight.is_cuda and uses_kernels("head", weight, rows=rows, width=width)


def _native(
    kind: str, weight: Tensor, moments: Moments | None = None
) -> Callable[[native.Pass], None] | None:
    """Return the library's pass, or None where PyTorch is to do it."""
    library = native.library() if weight.device.type == "cpu" else None
    if library is None:
        return None
    name = f"{kind}_{str(weight.dtype).removeprefix('torch.')}"
    if moments and moments.exp_avg.dtype != weight.dtype:
        name += "_bfloat16"
    return getattr(library, name)


def _run(
    function: Callable[[native.Pass], None],
    count: int,
    weight: Tensor,
    changed: tuple[Tensor, ...],
    tensors: Mapping[str, Tensor | None],
    **numbers: float,
) -> None:
    rows, width = weight.shape
    block_rows, blocks = native.partition(rows)
    work = native.Pass(rows=rows, width=width, count=count, block_rows=block_rows, blocks=blocks)
    # The pass holds the tensors, for a thread that outlives an interrupted caller.
    work.tensors = {"weight": weight, **tensors}
    for name, tensor in work.tensors.items():
        setattr(work, name, None if tensor is None else tensor.data_ptr())
    for name, number in numbers.items():
        setattr(work, name, number)
    # Autograd must not use what it saved of a tensor that changes behind its back.
    increment_version([tensor for tensor in changed if not tensor.is_inference()])
    threads.run(function, work)


def _update(
    weight: Tensor,
    dz: Tensor,
    hidden: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    targets: Tensor | None = None,
    sampled: SampledTargets | None = None,
    coefficient: float | Tensor = 0.0,
    adam: AdamStep | None = None,
    moments: Moments | None = None,
    bias_moments: Moments | None = None,
    want_hidden_grad: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the hidden gradient and the regularizer's sum, each 0 where it was not asked for."""
    dz = dz.contiguous()
    hidden = None if hidden is None else hidden.contiguous()
    count, width = len(dz if hidden is None else hidden), weight.shape[1]
    sums = weight.new_zeros(count, width, dtype=torch.float64) if want_hidden_grad else None
    function = _native("update", weight, moments)
    if function is None:
        with full_precision(weight.device):
            regularizer = update_tiles(
                weight,
                dz,
                hidden,
                bias=bias,
                targets=targets,
                sampled=sampled,
                coefficient=coefficient,
                adam=adam,
                moments=moments,
                bias_moments=bias_moments,
                hidden_grad=sums,
            )
    else:
        blocks = native.partition(len(weight))[1]
        parts = None if sums is None else sums.new_empty(blocks, count, width)
        squares = torch.empty(blocks, native.LANES, dtype=torch.float64)
        changed: tuple[Tensor, ...] = (weight, *moments) if moments else ()
        tensors = {"bias": bias, "hidden": hidden, "dz": dz, "targets": targets}
        tensors |= {"hidden_grad": parts, "regularizer": squares}
        if moments:
            tensors |= moments._asdict()
        if bias is not None and bias_moments:
            changed += (bias, *bias_moments)
            tensors |= {f"bias_{name}": moment for name, moment in bias_moments._asdict().items()}
        scalars: dict[str, Any] = {}
        if adam:
            scalars = {name: float(value) for name, value in adam._asdict().items()}
        _run(
            *(function, count, weight, changed, tensors),
            given=len(dz),
            bfloat16_targets=targets is not None and targets.dtype == torch.bfloat16,
            coefficient=float(coefficient),
            **scalars,
        )
        # numpy adds the blocks one after the other, on one thread.
        if parts is not None:
            sums = torch.from_numpy(parts.numpy().sum(axis=0))
        regularizer = torch.from_numpy(squares.numpy().sum(axis=0)).sum()
    hidden_grad = weight.new_zeros(()) if sums is None else sums.to(weight.dtype)
    return hidden_grad, regularizer


def _taken(dz: Tensor, options: AdamOptions) -> Tensor:
    """Return dz; zeros where the step is not to be taken, as 0 times NaN is NaN."""
    finite = options.get("finite")
    return dz if finite is None else torch.where(finite, dz, 0.0)


@torch.no_grad()
def logits(
    A: Tensor,
    b: Tensor,
    hidden: Tensor,
    out: Tensor | None = None,
    *,
    sampled: SampledTargets | None = None,
) -> Tensor:
    """Return the logits of several task embeddings, hidden A^T + b.

    Args:
        A: (N, H).
        b: (N,).
        hidden: (k, H), the trunk's outputs.
        out: (k, N), to be filled and returned.
        sampled: Names the batch that ``hidden`` was taken from; the logits have its bits.

    Returns:
        (k, N).
    """
    rows, width = check_weight(A)
    check("b", b, (rows,), A)
    check("hidden", hidden, ("k", width), A)
    if sampled is not None:
        check_sampled(sampled, len(hidden), A)
    if out is None:
        out = A.new_empty(len(hidden), rows)
    check("out", out, (len(hidden), rows), A)
    check_contiguous("out", out)
    b, hidden, function = b.contiguous(), hidden.contiguous(), _native("logits", A)
    if sampled is None and _takes_kernels(A):
        cuda.logits(A, b, hidden, out)
    elif function is None:
        with full_precision(A.device):
            logits_tiles(A, b, hidden, out, sampled)
    else:
        tensors = {"bias": b, "hidden": hidden, "logits": out}
        _run(function, len(hidden), A, (out,), tensors)
    return out


@torch.no_grad()
def hidden_grad(A: Tensor, dz: Tensor) -> Tensor:
    """Return dz A, summed in float64 over blocks of rows, in an order that only N decides.

    Args:
        A: (N, H).
        dz: (r, N), the gradients of the loss with respect to the logits.

    Returns:
        (r, H).
    """
    rows, _ = check_weight(A)
    check("dz", dz, ("r", rows), A)
    return cuda.hidden_grad(A, dz) if _takes_kernels(A) else _update(A, dz)[0]


@torch.no_grad()
def adam_rows(
    A: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    dz: Tensor,
    hidden: Tensor,
    **options: Unpack[AdamOptions],
) -> None:
    """Apply an Adam step with the gradient dz^T hidden to A and its moments, in place.

    Args:
        A: (N, H).
        exp_avg, exp_avg_sq: (N, H), of A's dtype or bfloat16.
        dz: (r, N).
        hidden: (r, H).
        **options: :class:`AdamOptions`.
    """
    rows, width = check_weight(A)
    moments = Moments(exp_avg, exp_avg_sq)
    check_moments("", moments, A, exp_avg.dtype)
    check("dz", dz, ("r", rows), A)
    check("hidden", hidden, (len(dz), width), A)
    if _takes_kernels(A):
        cuda.adam_rows(A, moments, dz, hidden, options)
        return
    adam = adam_step(options, A.dtype)
    _update(A, _taken(dz, options), hidden, adam=adam, moments=moments, want_hidden_grad=False)


@torch.no_grad()
def step_rows(
    A: Tensor,
    b: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    bias_exp_avg: Tensor,
    bias_exp_avg_sq: Tensor,
    dz_current: Tensor,
    hidden: Tensor,
    targets: Targets,
    *,
    coefficient: float | Tensor,
    **options: Unpack[AdamOptions],
) -> tuple[Tensor, Tensor]:
    """Do the rest of a training step in one pass: output regularizer, gradients, Adam on A and b.

    For the t earlier embeddings, r_j = A h_j + b - targets_j and dz_j = coefficient r_j; the
    gradients of A and b sum over them and the current embedding. Of targets in bfloat16, one that a
    logit rounds to leaves no residual.

    Args:
        A, b: (N, H) and (N,), updated in place.
        exp_avg, exp_avg_sq, bias_exp_avg, bias_exp_avg_sq: Moments like A and b, of A's dtype or
            bfloat16, updated in place.
        dz_current: (N,), the gradient of the task's loss with respect to the current logits.
        hidden: (t + 1, H), the current embedding's first.
        targets: (t, N), the logits to keep, of A's dtype or bfloat16; t may be 0. Or those logits
            with the batch they are sampled from, or the head and hidden rows that gave them.
        coefficient: 2 beta / t^2 for the regularizer beta / t * mean_j ||r_j||^2; a number, or a
            0-d tensor.
        **options: :class:`AdamOptions`.

    Returns:
        The gradient to ``hidden`` (t + 1, H), with A as it was before the step, and the sum of all
        r_j^2, 0-d float64.
    """
    rows, width = check_weight(A)
    check("b", b, (rows,), A)
    check_contiguous("b", b)
    moments, bias_moments = Moments(exp_avg, exp_avg_sq), Moments(bias_exp_avg, bias_exp_avg_sq)
    check_moments("", moments, A, exp_avg.dtype)
    check_moments("bias_", bias_moments, b, exp_avg.dtype)
    check("dz_current", dz_current, (rows,), A)
    check("hidden", hidden, ("t + 1", width), A)
    sampled: SampledTargets | None = None
    if isinstance(targets, FrozenHead):
        check_frozen(targets, len(hidden) - 1, A)
    else:
        if isinstance(targets, SampledTargets):
            check_sampled(targets, len(hidden), A)
            sampled, targets = targets, targets.logits
        check_targets(targets, len(hidden) - 1, A)
        if sampled is None and _takes_kernels(A):
            return cuda.step_rows(
                *(A, b, moments, bias_moments, dz_current, hidden, targets), coefficient, options
            )
    adam, dz = adam_step(options, A.dtype), _taken(dz_current, options)
    if isinstance(targets, FrozenHead):
        with full_precision(A.device):
            return step_frozen(
                *(A, b, dz, hidden, targets),
                coefficient=coefficient,
                adam=adam,
                moments=moments,
                bias_moments=bias_moments,
            )
    return _update(
        A,
        dz[None],
        hidden,
        bias=b,
        targets=targets,
        sampled=sampled,
        coefficient=coefficient,
        adam=adam,
        moments=moments,
        bias_moments=bias_moments,
    )
