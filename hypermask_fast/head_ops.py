"""Passes over a hypernetwork's full head, z = A h + b, that read and write A once.

A (N, H) is about 100 times the network it masks, so a step costs what it moves of A and of its
moments. Each function is one pass, native on a CPU (:mod:`hypermask_fast.native`), else PyTorch a
tile of rows at a time. Gradients come as factors, dA = dz^T hidden, which is never formed.

In the native passes a logit has the same bits in :func:`logits` and :func:`step_rows`, for any
number of embeddings and threads. In PyTorch it has them for the same number of embeddings: make
targets with all t + 1 of a step. The residual of an unchanged head is then exactly 0.

Nothing here takes part in autograd or autocast. All tensors share one device and A's dtype,
float32 or float64; only moments may be bfloat16 instead, which are rounded to nearest even when
stored. A wrong shape raises ValueError, as do strides where a copy would be large, and a wrong
dtype raises TypeError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NotRequired, TypedDict, Unpack

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from hypermask_fast import native
from hypermask_fast._head_tiles import AdamStep, Moments, logits_tiles, update_tiles
from hypermask_fast.native import threads


class AdamOptions(TypedDict):
    """Hyperparameters of one Adam step, as in ``torch.optim.Adam``.

    Attributes:
        lr, beta1, beta2, eps: Of Adam.
        weight_decay: Its factor; 0 for none.
        decoupled: Decay as AdamW does, not through the gradient.
        step: Number of this update, from 1.
        grad_scale: Multiplies the gradient of A and b, not the returned hidden gradient. Default 1.
        maximize: Ascend instead. Default False.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool
    step: float
    grad_scale: NotRequired[float]
    maximize: NotRequired[bool]


def _adam_step(options: AdamOptions) -> AdamStep:
    step, lr, decay = options["step"], options["lr"], options["weight_decay"]
    if step < 1:
        raise ValueError(f"step is {step}; count the first update as 1")
    scale = options.get("grad_scale", 1.0)
    return AdamStep(
        scale=-scale if options.get("maximize") else scale,
        decay=1 - lr * decay if options["decoupled"] else 1.0,
        l2=0.0 if options["decoupled"] else decay,
        lerp=1 - options["beta1"],
        beta2=options["beta2"],
        root_correction2=math.sqrt(1 - options["beta2"] ** step),
        eps=options["eps"],
        step_size=lr / (1 - options["beta1"] ** step),
    )


def _check(
    name: str,
    tensor: Tensor,
    shape: tuple[int | str, ...],
    like: Tensor,
    dtype: torch.dtype | None = None,
) -> None:
    """Check against ``like``'s device and dtype, and ``shape``, where a name fits any size."""
    sizes, dtype = tuple(tensor.shape), dtype or like.dtype
    if len(sizes) != len(shape) or any(
        isinstance(want, int) and want != size for size, want in zip(sizes, shape, strict=True)
    ):
        raise ValueError(f"{name} has shape {sizes}; expected ({', '.join(map(str, shape))})")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}; move it to A's {like.device}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} is {tensor.dtype}; convert it to {dtype}")


def _check_contiguous(name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name} has strides {tensor.stride()} for shape {tuple(tensor.shape)}; "
            f"pass a contiguous tensor, made once outside the loop"
        )


def _check_weight(weight: Tensor) -> tuple[int, int]:
    if weight.dim() != 2 or not weight.shape[1]:
        raise ValueError(f"A has shape {tuple(weight.shape)}; expected (N, H) with H of at least 1")
    if weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"A is {weight.dtype}; convert it to float32 or float64")
    _check_contiguous("A", weight)
    return weight.shape[0], weight.shape[1]


def _check_moments(prefix: str, moments: Moments, like: Tensor, dtype: torch.dtype) -> None:
    if dtype not in (like.dtype, torch.bfloat16):
        raise TypeError(f"exp_avg is {dtype}; expected A's {like.dtype} or bfloat16")
    for name, moment in moments._asdict().items():
        _check(prefix + name, moment, tuple(like.shape), like, dtype)
        _check_contiguous(prefix + name, moment)


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
    coefficient: float = 0.0,
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
        with torch.autocast(weight.device.type, enabled=False):
            regularizer = update_tiles(
                weight,
                dz,
                hidden,
                bias=bias,
                targets=targets,
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
        scalars = adam._asdict() if adam else {}
        _run(
            *(function, count, weight, changed, tensors),
            given=len(dz),
            coefficient=coefficient,
            **scalars,
        )
        # numpy adds the blocks one after the other, on one thread.
        if parts is not None:
            sums = torch.from_numpy(parts.numpy().sum(axis=0))
        regularizer = torch.from_numpy(squares.numpy().sum(axis=0)).sum()
    hidden_grad = weight.new_zeros(()) if sums is None else sums.to(weight.dtype)
    return hidden_grad, regularizer


@torch.no_grad()
def logits(A: Tensor, b: Tensor, hidden: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the logits of several task embeddings, hidden A^T + b.

    Args:
        A: (N, H).
        b: (N,).
        hidden: (k, H), the trunk's outputs.
        out: (k, N), to be filled and returned.

    Returns:
        (k, N).
    """
    rows, width = _check_weight(A)
    _check("b", b, (rows,), A)
    _check("hidden", hidden, ("k", width), A)
    if out is None:
        out = A.new_empty(len(hidden), rows)
    _check("out", out, (len(hidden), rows), A)
    _check_contiguous("out", out)
    b, hidden, function = b.contiguous(), hidden.contiguous(), _native("logits", A)
    if function is None:
        with torch.autocast(A.device.type, enabled=False):
            logits_tiles(A, b, hidden, out)
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
    rows, _ = _check_weight(A)
    _check("dz", dz, ("r", rows), A)
    return _update(A, dz)[0]


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
    rows, width = _check_weight(A)
    moments = Moments(exp_avg, exp_avg_sq)
    _check_moments("", moments, A, exp_avg.dtype)
    _check("dz", dz, ("r", rows), A)
    _check("hidden", hidden, (len(dz), width), A)
    _update(A, dz, hidden, adam=_adam_step(options), moments=moments, want_hidden_grad=False)


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
    targets: Tensor,
    *,
    coefficient: float,
    **options: Unpack[AdamOptions],
) -> tuple[Tensor, Tensor]:
    """Do the rest of a training step in one pass: output regularizer, gradients, Adam on A and b.

    For the t earlier embeddings, r_j = A h_j + b - targets_j and dz_j = coefficient r_j; the
    gradients of A and b sum over them and the current embedding.

    Args:
        A, b: (N, H) and (N,), updated in place.
        exp_avg, exp_avg_sq, bias_exp_avg, bias_exp_avg_sq: Moments like A and b, of A's dtype or
            bfloat16, updated in place.
        dz_current: (N,), the gradient of the task's loss with respect to the current logits.
        hidden: (t + 1, H), the current embedding's first.
        targets: (t, N), the logits to keep; t may be 0.
        coefficient: 2 beta / t^2 for the regularizer beta / t * mean_j ||r_j||^2.
        **options: :class:`AdamOptions`.

    Returns:
        The gradient to ``hidden`` (t + 1, H), with A as it was before the step, and the sum of all
        r_j^2, 0-d float64.
    """
    rows, width = _check_weight(A)
    _check("b", b, (rows,), A)
    _check_contiguous("b", b)
    moments, bias_moments = Moments(exp_avg, exp_avg_sq), Moments(bias_exp_avg, bias_exp_avg_sq)
    _check_moments("", moments, A, exp_avg.dtype)
    _check_moments("bias_", bias_moments, b, exp_avg.dtype)
    _check("dz_current", dz_current, (rows,), A)
    _check("hidden", hidden, ("t + 1", width), A)
    _check("targets", targets, (len(hidden) - 1, rows), A)
    _check_contiguous("targets", targets)
    return _update(
        A,
        dz_current[None],
        hidden,
        bias=b,
        targets=targets,
        coefficient=coefficient,
        adam=_adam_step(options),
        moments=moments,
        bias_moments=bias_moments,
    )
