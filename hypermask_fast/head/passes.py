"""Passes over a hypernetwork's full head, z = A h + b, that read and write A once.

A (N, H) is about 100 times the network it masks, so a step costs what it moves of A and of its
moments. Each function is one pass, by one of five engines with the same functions: ``cuda`` (the
kernels, for a float32 head), ``cpu`` (native code), ``tiles`` (PyTorch, a tile of rows at a time),
where the earlier tasks' logits are kept as the head that gave them, ``frozen``, and in PyTorch for
steps that look ahead or have a head in chunks, ``ahead``. Gradients come as factors,
dA = dz^T hidden, which is never formed.

In the native passes a logit has the same bits in :func:`logits` and :func:`step_rows`, for any
number of embeddings and threads. In PyTorch it has them in the same batch of embeddings: make the
logits to keep with all t + 1 of a step, or name the batch by :class:`KeptSample`. The residual of
an unchanged head is then exactly 0. Against a :class:`FrozenHead` it always is.

Nothing here takes part in autograd or autocast. All tensors share one device and A's dtype,
float32 or float64; only logits to keep and moments may be bfloat16 instead, which are rounded to
nearest even when stored. A wrong shape raises ValueError, as do strides where a copy would be
large, and a wrong dtype raises TypeError.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hypermask_fast.head import ahead, boxes, cpu, cuda, frozen, tiles
from hypermask_fast.head.checks import (
    check,
    check_chunks,
    check_contiguous,
    check_frozen,
    check_kept,
    check_moments,
    check_sample,
    check_weight,
)
from hypermask_fast.head.types import (
    FrozenHead,
    Head,
    HeadEngine,
    HeadGrads,
    HeadStep,
    KeptBoxes,
    KeptChunks,
    KeptSample,
)


def _engine(weight: Tensor, sample: KeptSample | None = None) -> HeadEngine:
    # The kernels form the logits of a sample in another order than those of the whole batch.
    if sample is None and cuda.takes(weight):
        return cuda
    return cpu if cpu.takes(weight) else tiles


@torch.no_grad()
def logits(
    head: Head, hidden: Tensor, out: Tensor | None = None, *, sample: KeptSample | None = None
) -> Tensor:
    """Return the logits of several task embeddings, hidden A^T + b.

    Args:
        head: A (N, H) and b (N,).
        hidden: (k, H), the trunk's outputs.
        out: (k, N), to be filled and returned.
        sample: Names the batch that ``hidden`` was taken from; the logits have its bits.

    Returns:
        (k, N).
    """
    weight, bias, *_ = head
    assert bias is not None
    rows, width = check_weight(weight)
    check("b", bias, (rows,), weight)
    check("hidden", hidden, ("k", width), weight)
    if sample is not None:
        check_sample(sample, len(hidden), weight)
    if out is None:
        out = weight.new_empty(len(hidden), rows)
    check("out", out, (len(hidden), rows), weight)
    check_contiguous("out", out)
    whole = Head(weight, bias.contiguous())
    _engine(weight, sample).logits(whole, hidden.contiguous(), out, sample)
    return out


@torch.no_grad()
def hidden_grad(weight: Tensor, dz: Tensor) -> Tensor:
    """Return dz A, summed in float64 over blocks of rows, in an order that only N decides.

    Args:
        weight: A (N, H).
        dz: (r, N), the gradients of the loss with respect to the logits.

    Returns:
        (r, H).
    """
    rows, _ = check_weight(weight)
    check("dz", dz, ("r", rows), weight)
    return _engine(weight).hidden_grad(weight, dz.contiguous())


@torch.no_grad()
def adam_rows(step: HeadStep) -> None:
    """Apply an Adam step with the gradient dz^T hidden to A and its moments, in place.

    Args:
        step: Of a head with moments of A; b and its moments are left alone, nothing is kept.
    """
    weight, moments = step.head.weight, step.head.moments
    rows, width = check_weight(weight)
    assert moments is not None
    check_moments("", moments, weight, moments.exp_avg.dtype)
    check("dz", step.dz, ("r", rows), weight)
    check("hidden", step.hidden, (len(step.dz), width), weight)
    head = Head(weight, moments=moments)
    _engine(weight).adam_rows(
        step._replace(head=head, dz=step.dz.contiguous(), hidden=step.hidden.contiguous())
    )


@torch.no_grad()
def step_rows(step: HeadStep) -> HeadGrads:
    """Do the rest of a training step in one pass: output regularizer, gradients, Adam on A and b.

    For the t earlier embeddings, r_j = A h_j + b - kept_j and dz_j = coefficient r_j; the
    gradients of A and b sum over them and the current embedding. Of logits kept in bfloat16, one
    that a logit rounds to leaves no residual.

    Args:
        step: Of a head with all moments; dz (r, N) of the current embedding, hidden (r + t, H) with
            the current one first, and what is kept of the t earlier ones; t may be 0. r is 1, and
            in a step that looks ahead, or has a head in chunks, any number; the head is not frozen
            there, nor what is kept a sample.
    """
    if isinstance(step.kept, KeptBoxes):
        return boxes.step_rows(step)
    weight, bias, moments, bias_moments = step.head
    rows, width = check_weight(weight)
    assert bias is not None
    assert moments is not None
    check("b", bias, (rows,), weight)
    check_contiguous("b", bias)
    check_moments("", moments, weight, moments.exp_avg.dtype)
    if step.bias_grad is None:
        assert bias_moments is not None
        check_moments("bias_", bias_moments, bias, moments.exp_avg.dtype)
    else:
        check("bias_grad", step.bias_grad, (rows,), weight)
        check_contiguous("bias_grad", step.bias_grad)
        step = step._replace(head=step.head._replace(bias_moments=None))
    chunked = isinstance(step.kept, KeptChunks)
    one = step.kept is not None and not (step.looks_ahead or chunked)
    check("dz", step.dz, (1 if one else "r", rows), weight)
    check("hidden", step.hidden, ("t + 1" if one else "r + t", width), weight)
    count, kept = len(step.hidden) - len(step.dz), step.kept_logits
    if step.looks_ahead and step.bias_grad is not None:
        raise ValueError(
            "bias_grad is given and the step looks ahead, for which A and b are updated together; "
            "give the moments of b instead"
        )
    if isinstance(step.kept, KeptChunks):
        check_chunks(step.kept, count, weight)
    elif isinstance(step.kept, FrozenHead):
        check_frozen(step.kept, count, weight)
    elif kept is not None or count:
        if step.sample is not None:
            check_sample(step.sample, len(step.hidden), weight)
        check_kept(weight.new_empty(0, rows) if kept is None else kept, count, weight)
    whole = step._replace(dz=step.dz.contiguous(), hidden=step.hidden.contiguous())
    if step.looks_ahead and cuda.takes_ahead(whole):
        return cuda.step_ahead(whole)
    if step.looks_ahead or chunked or len(step.dz) > 1:
        return (cpu if cpu.takes(weight) else ahead).step_rows(whole)
    if isinstance(step.kept, FrozenHead):
        return frozen.step_rows(whole)
    return _engine(weight, step.sample).step_rows(whole)
