"""Passes over a head that is given boxes: centers A h + b and radii |A| rho, in one read of A.

As :mod:`hypermask_fast.head.passes`: nothing here takes part in autograd, gradients of A are never
whole, and residuals of an unchanged head are exactly 0 where what is kept was made by
:func:`logits` of all boxes of a step. The engines are native code on a CPU, and tiles of PyTorch's
operators elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hypermask_fast.backends.choice import requested
from hypermask_fast.backends.precision import full_precision
from hypermask_fast.head import cpu
from hypermask_fast.head.tiles import adam_tile, tiles_of
from hypermask_fast.head.types import Head, HeadGrads, HeadStep, KeptBoxes
from hypermask_fast.reference import output_residuals

OF_RADII = 2.0 / 3.0
"""Weight of a squared change of a radius: low and up change by it too, the center once more."""


def _is_native(weight: Tensor) -> bool:
    has_code = weight.dtype in (torch.float32, torch.float64)
    return has_code and requested() != "reference" and cpu.takes(weight)


def _tile(head: Head, hidden: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Return centers and radii (k, rows); every pass forms them by this call, for equal bits."""
    weight, bias, *_ = head
    assert bias is not None
    points, spreads = hidden.chunk(2)
    return torch.addmm(bias[rows], points, weight[rows].t()), spreads @ weight[rows].abs().t()


@torch.no_grad()
def logits(head: Head, hidden: Tensor) -> Tensor:
    """Return centers and radii (k, 2 N) of k boxes, those of a box after each other.

    Args:
        head: A (N, H) and b (N,).
        hidden: (2 k, H), the boxes' centers, then their radii.
    """
    weight, bias, *_ = head
    assert bias is not None
    count, size = len(hidden) // 2, len(weight)
    out = weight.new_empty(count, 2 * size)
    if _is_native(weight):
        whole = Head(weight, bias.contiguous())
        cpu.boxes(whole, hidden.contiguous(), out)
        return out
    with full_precision(out.device):
        for rows in tiles_of(weight):
            centers, radii = _tile(head, hidden, rows)
            out[:, :size][:, rows], out[:, size:][:, rows] = centers, radii
    return out


@torch.no_grad()
def gradients(head: Head, hidden: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of A, b and ``hidden`` for that of :func:`logits`.

    Args:
        head, hidden: As there.
        grad: (k, 2 N).
    """
    weight = head.weight
    dc, dr = grad.chunk(2, dim=1)
    points, spreads = hidden.chunk(2)
    of_weight = torch.empty_like(weight)
    of_points, of_spreads = torch.zeros_like(points), torch.zeros_like(spreads)
    with full_precision(weight.device):
        for rows in tiles_of(weight):
            tile = weight[rows]
            of_weight[rows] = dc[:, rows].t() @ points + tile.sign() * (dr[:, rows].t() @ spreads)
            of_points += dc[:, rows] @ tile
            of_spreads += dr[:, rows] @ tile.abs()
    return of_weight, dc.sum(0), torch.cat((of_points, of_spreads))


@torch.no_grad()
def step_rows(step: HeadStep) -> HeadGrads:
    """Form the earlier boxes' residuals and all gradients, and apply Adam to A and b, in one pass.

    Args:
        step: dz (2, N), the gradients of the current box's centers and radii; hidden (2 k, H) as in
            :func:`logits`, the current box first; kept a :class:`KeptBoxes` of the k - 1 others.
    """
    assert isinstance(step.kept, KeptBoxes)
    head = step.head
    if step.bias_grad is not None:
        head = head._replace(bias_moments=None)
    step = step._replace(head=head, dz=step.dz.contiguous(), hidden=step.hidden.contiguous())
    return cpu.step_boxes(step) if _is_native(step.head.weight) else _tiles(step)


def _tiles(step: HeadStep) -> HeadGrads:
    weight, bias, moments, bias_moments = step.head
    kept = step.kept
    assert isinstance(kept, KeptBoxes)
    assert bias is not None
    assert moments is not None
    adam, size = step.scalars(), len(weight)
    points, spreads = step.hidden.chunk(2)
    squares = torch.zeros((), dtype=torch.float64, device=weight.device)
    sums = weight.new_zeros(step.hidden.shape, dtype=torch.float64)
    bias_grad = torch.empty_like(bias) if step.bias_grad is None else step.bias_grad
    with full_precision(weight.device):
        for rows in tiles_of(weight):
            dc, dr = _tile(step.head, step.hidden, rows)
            if kept.logits is not None:
                changes = output_residuals(dc[1:], kept.logits[:, :size][:, rows])
                squares += changes.double().square().sum()
                torch.mul(changes, step.coefficient, out=dc[1:])
                if kept.radii:
                    changes = output_residuals(dr[1:], kept.logits[:, size:][:, rows])
                    squares += OF_RADII * changes.double().square().sum()
                    torch.mul(changes, step.coefficient * OF_RADII, out=dr[1:])
                else:
                    dr[1:] = 0
            dc[0], dr[0] = step.taken_dz[:, rows]
            tile = weight[rows]
            sums += torch.cat((dc @ tile, dr @ tile.abs()))
            grad = dc.t() @ points + tile.sign() * (dr.t() @ spreads)
            adam_tile(weight, moments, grad, rows, adam)
            torch.sum(dc, 0, out=bias_grad[rows])
        if bias_moments is not None:
            adam_tile(bias, bias_moments, bias_grad, slice(None), adam)
    return HeadGrads(sums.to(weight.dtype), squares)
