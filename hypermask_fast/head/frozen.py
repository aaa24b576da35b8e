"""The output regularizer against a frozen copy of the head, at a cost that no task adds to.

With E = A - A_old, e = b - b_old, u_j the hidden row of task j and w_j = u_j - u_old_j, a residual
is ``r_j = E u_j + e + A_old w_j = V q_j`` for V = [E, e, A_old] and q_j = [u_j, 1, w_j]. Its sums
over tasks need only Q^T Q, its sums over mask entries only V^T V, each of 2H + 1 rows:

- ``sum r^2 = <Q^T Q, V^T V>``;
- the gradient of half of it to A and b is ``V (Q^T Q)``, columns 0 to H;
- that to u_j is ``sum_n r_jn A_n = q_j (V^T A)``, and A = E + A_old.

A_old^T A_old does not change within a task. All of it is exactly 0 where nothing changed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hypermask_fast.backends.precision import full_precision
from hypermask_fast.head.adam import AdamStep
from hypermask_fast.head.tiles import adam_tile, tiles_of
from hypermask_fast.head.types import FrozenHead, Head, HeadGrads, HeadStep


class Quadratic(NamedTuple):
    """The regularizer as a quadratic form, once the products of V are there.

    Attributes:
        squares: 0-d float64, the sum of all squared residuals.
        hidden_grad: float64 (t, H), the gradient of half of ``squares``.
    """

    squares: Tensor
    hidden_grad: Tensor


@torch.no_grad()
def freeze(weight: Tensor, bias: Tensor, hidden: Tensor) -> FrozenHead:
    """Return copies of a head and of the hidden rows (t, H) that depend on nothing any more."""
    return FrozenHead(weight.clone(), bias.clone(), hidden.clone(), gram_of(weight))


@torch.no_grad()
def gram_of(weight: Tensor) -> Tensor:
    """Return A^T A, float64 (H, H)."""
    gram = weight.new_zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    for rows in tiles_of(weight):
        gram += weight[rows].t() @ weight[rows]
    return gram


def task_rows(hidden: Tensor, frozen: FrozenHead) -> Tensor:
    """Return Q, float64 (t, 2H + 1), of the earlier tasks' present hidden rows (t, H)."""
    now, then = hidden.double(), frozen.hidden.double()
    return torch.cat((now, now.new_ones(len(now), 1), now - then), 1)


def head_factors(q: Tensor, coefficient: float | Tensor, current: Tensor) -> Tensor:
    """Return the factors (2H + 2, H + 1) of [V, dz] in the gradient of A and b, in dtype of A.

    Args:
        q: Of :func:`task_rows`.
        coefficient: Factor of a residual in its gradient.
        current: (H,), the current task's hidden row.
    """
    of_residuals = coefficient * (q.t() @ q[:, : len(current) + 1])
    of_current = torch.cat((current, current.new_ones(1)))
    return torch.cat((of_residuals.to(current.dtype), of_current[None]))


def empty_products(weight: Tensor) -> Tensor:
    """Return the zeros that :func:`frozen_tiles` adds ``V^T [E, e]`` to."""
    width = weight.shape[1]
    return weight.new_zeros(2 * width + 1, width + 1, dtype=torch.float64)


def quadratic(q: Tensor, products: Tensor, frozen: FrozenHead) -> Quadratic:
    """Return the regularizer from ``V^T [E, e]``."""
    changed = products.shape[1]
    with_old = torch.cat((products[changed:].t(), frozen.gram.double()))
    all_products = torch.cat((products, with_old), 1)
    # Where terms cancel, rounding can leave less than nothing.
    squares = ((q.t() @ q) * all_products).sum().clamp_min(0)
    return Quadratic(squares, q @ (products[:, :-1] + with_old))


def frozen_tiles(
    head: Head,
    frozen: FrozenHead,
    *,
    dz: Tensor | None = None,
    products: Tensor | None = None,
    current_grad: Tensor | None = None,
    factors: Tensor | None = None,
    grads: tuple[Tensor, Tensor] | None = None,
    adam: AdamStep | None = None,
    bias_grad: Tensor | None = None,
) -> None:
    """Do in one pass what is asked for.

    Args:
        head: A (N, H) and b (N,).
        frozen: What they were.
        dz: (N,), the gradient to the current task's logits; for what follows ``products``.
        products: Of :func:`empty_products`, receives the sum.
        current_grad: float64 (H,), zeros, receives dz A.
        factors: Of :func:`head_factors`; gives the gradient of A and b, for:
        grads: like A and b, to be filled, or
        adam: which updates A, and b where it has moments.
        bias_grad: like b, to be filled with its gradient, with ``adam``.
    """
    weight, bias, moments, bias_moments = head
    assert bias is not None
    changed = weight.shape[1] + 1
    if grads is not None:
        bias_grad = grads[1]
    elif bias_grad is None:
        bias_grad = torch.empty_like(bias)
    for rows in tiles_of(weight):
        a, old = weight[rows], frozen.weight[rows]
        columns = [a - old, (bias[rows] - frozen.bias[rows])[:, None], old]
        v = torch.cat(columns if dz is None else [*columns, dz[rows, None]], 1)
        if products is not None:
            products += v[:, : 2 * changed - 1].t() @ v[:, :changed]
        if current_grad is not None and dz is not None:
            current_grad += dz[rows] @ a
        if factors is None:
            continue
        torch.mv(v, factors[:, -1], out=bias_grad[rows])
        if grads is not None:
            torch.mm(v, factors[:, :-1], out=grads[0][rows])
        elif adam and moments:
            adam_tile(weight, moments, v @ factors[:, :-1], rows, adam)
    if adam and bias_moments:
        adam_tile(bias, bias_moments, bias_grad, slice(None), adam)


def step_rows(step: HeadStep) -> HeadGrads:
    """Form residuals and gradients, and apply an Adam step to A and b, in one pass."""
    frozen, dz = step.kept, step.taken_dz[0]
    assert isinstance(frozen, FrozenHead)
    weight, hidden = step.head.weight, step.hidden
    with full_precision(weight.device):
        q, products = task_rows(hidden[1:], frozen), empty_products(weight)
        current_grad = products.new_zeros(len(hidden[0]))
        frozen_tiles(
            *(step.head, frozen),
            dz=dz,
            products=products,
            current_grad=current_grad,
            factors=head_factors(q, step.coefficient, hidden[0]),
            adam=step.scalars(),
            bias_grad=step.bias_grad,
        )
        squares, sums = quadratic(q, products, frozen)
        grads = torch.cat((current_grad[None], step.coefficient * sums))
    return HeadGrads(grads.to(weight.dtype), squares)
