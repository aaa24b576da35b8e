"""The passes over a head as native code on a CPU.

A logit has the same bits in :func:`logits` and :func:`step_rows`, for any number of embeddings and
threads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from hypermask_fast.head.adam import AdamStep
from hypermask_fast.head.types import (
    Head,
    HeadGrads,
    HeadStep,
    KeptBoxes,
    KeptChunks,
    KeptSample,
)
from hypermask_fast.modes import is_followed
from hypermask_fast.native import library
from hypermask_fast.native.calls import call, is_readable
from hypermask_fast.native.head import LANES, HeadPass, partition


def takes(weight: Tensor) -> bool:
    """Return whether the library is there for this head, and nothing would miss what it does."""
    return not is_followed() and is_readable(weight) and library.load() is not None


def _run(
    kind: str, head: Head, count: int, changed: tuple[Tensor | None, ...], **fields: Any
) -> None:
    weight, bias, moments, bias_moments = head
    rows, width = weight.shape
    name = f"{kind}_{{}}"
    if moments is not None:
        fields |= moments._asdict()
        name += "" if moments.exp_avg.dtype == weight.dtype else "_bfloat16"
    if bias_moments is not None:
        fields |= {f"bias_{name}": moment for name, moment in bias_moments._asdict().items()}
    block_rows, blocks = partition(rows)
    work = HeadPass(rows=rows, width=width, count=count, block_rows=block_rows, blocks=blocks)
    # Autograd must not use what it saved of a tensor that changes behind its back.
    increment_version([t for t in changed if t is not None and not t.is_inference()])
    call(name, weight.dtype, work, weight=weight, bias=bias, **fields)


def _numbers(adam: AdamStep) -> dict[str, Any]:
    return {name: float(value) for name, value in adam._asdict().items()}


def _sums(head: Head, count: int) -> Tensor:
    """Return room for the hidden gradient of each block."""
    blocks = partition(len(head.weight))[1]
    return head.weight.new_empty(blocks, count, head.weight.shape[1], dtype=torch.float64)


def _added(parts: Tensor) -> Tensor:
    # numpy adds the blocks one after the other, on one thread.
    return torch.from_numpy(parts.numpy().sum(axis=0))


def logits(head: Head, hidden: Tensor, out: Tensor, sample: KeptSample | None = None) -> None:
    """Write hidden A^T + b to ``out`` (k, N); its bits are those of every batch."""
    _run("logits", head, len(hidden), (out,), hidden=hidden, logits=out)


def hidden_grad(weight: Tensor, dz: Tensor) -> Tensor:
    """Return dz A, (r, H)."""
    head, parts = Head(weight), _sums(Head(weight), len(dz))
    _run("update", head, len(dz), (), given=len(dz), dz=dz, hidden_grad=parts)
    return _added(parts).to(weight.dtype)


def adam_rows(step: HeadStep) -> None:
    """Apply an Adam step with the gradient dz^T hidden to A and its moments."""
    head, dz = step.head, step.taken_dz
    assert head.moments is not None
    numbers = _numbers(step.scalars())
    _run(
        *("update", head, len(step.hidden), (head.weight, *head.moments)),
        given=len(dz),
        dz=dz,
        hidden=step.hidden,
        **numbers,
    )


@lru_cache(maxsize=64)
def _places(count: int, size: int, chunks: int, rows: int) -> tuple[Tensor, Tensor]:
    firsts = torch.arange(chunks) * rows
    places = torch.arange(count)[:, None] * size + firsts
    return places.flatten(), (size - firsts).clamp_max(rows).repeat(count)


def _spread(step: HeadStep) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return where each embedding's logits to keep begin, and how many there are, of chunks."""
    kept, rows = step.kept, len(step.head.weight)
    if not isinstance(kept, KeptChunks):
        return None, None
    return _places(*kept.logits.shape, kept.chunks, rows)


def step_rows(step: HeadStep) -> HeadGrads:
    """Form residuals and gradients, and apply an Adam step to A and b, in one pass."""
    head, dz, kept = step.head, step.taken_dz, step.kept_logits
    assert head.moments is not None
    parts = _sums(head, len(step.hidden))
    squares = parts.new_empty(len(parts), LANES)
    places, limits = _spread(step)
    _run(
        *("update", head, len(step.hidden)),
        (head.weight, *head.moments, head.bias, *(head.bias_moments or ()), step.bias_grad),
        given=len(dz),
        dz=dz,
        hidden=step.hidden,
        targets=kept,
        bfloat16_targets=kept is not None and kept.dtype == torch.bfloat16,
        coefficient=float(step.coefficient),
        hidden_grad=parts,
        regularizer=squares,
        bias_grad=step.bias_grad,
        places=places,
        limits=limits,
        looks_ahead=step.looks_ahead,
        ahead_eps=step.options.eps,
        **_numbers(step.scalars()),
    )
    return HeadGrads(_added(parts).to(head.weight.dtype), _added(squares).sum())


def boxes(head: Head, hidden: Tensor, out: Tensor) -> None:
    """Write the centers and radii of boxes ``hidden`` (2 k, H) to ``out`` (k, 2 N)."""
    _run("boxes", head, len(hidden) // 2, (out,), hidden=hidden, logits=out)


def step_boxes(step: HeadStep) -> HeadGrads:
    """As :func:`step_rows`, for the boxes of :func:`hypermask_fast.head.boxes.step_rows`."""
    head, kept = step.head, step.kept
    assert isinstance(kept, KeptBoxes)
    assert head.moments is not None
    parts = _sums(head, len(step.hidden))
    squares = parts.new_empty(len(parts), LANES)
    _run(
        *("update_boxes" if kept.radii else "update_centers", head, len(step.hidden) // 2),
        (head.weight, *head.moments, head.bias, *(head.bias_moments or ()), step.bias_grad),
        dz=step.taken_dz,
        hidden=step.hidden,
        targets=kept.logits,
        bfloat16_targets=kept.logits is not None and kept.logits.dtype == torch.bfloat16,
        coefficient=float(step.coefficient),
        hidden_grad=parts,
        regularizer=squares,
        bias_grad=step.bias_grad,
        **_numbers(step.scalars()),
    )
    return HeadGrads(_added(parts).to(head.weight.dtype), _added(squares).sum())
