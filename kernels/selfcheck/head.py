"""Cases of the kernels of a hypernetwork's head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hypermask_fast.kernels.selfcheck.case import Case, Draw, Right
from hypermask_fast.kernels.selfcheck.rounded import Rounded, exact, matmul, number

ADAM: dict[str, Any] = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "step": 3}
_COEFFICIENT = 0.02


def _scalars(device: torch.device) -> Tensor:
    from hypermask_fast.kernels.head.adam import adam_scalars

    return adam_scalars(device, **ADAM, weight_decay=0.0, decoupled=False)


def _moments(state: Sequence[Rounded], grad: Rounded) -> tuple[Rounded, Rounded]:
    """Return the moments after a step, not yet rounded to what they are stored as."""
    _, exp_avg, exp_avg_sq = state
    first, second = (number(1 - ADAM[name]) for name in ("beta1", "beta2"))
    exp_avg = exp_avg.plus(first.times(grad.minus(exp_avg)))
    exp_avg_sq = exp_avg_sq.times(number(ADAM["beta2"])).plus(second.times(grad.times(grad)))
    return exp_avg, exp_avg_sq


def _moved(parameter: Rounded, moments: Sequence[Rounded], eps: float) -> Rounded:
    """Return a parameter less Adam's step; ``eps`` is added before the bias is corrected."""
    root = (1 - ADAM["beta2"] ** ADAM["step"]) ** 0.5
    rate = number(ADAM["lr"] * root / (1 - ADAM["beta1"] ** ADAM["step"]))
    ratio = moments[0].over(moments[1].root().plus(number(eps)))
    return parameter.minus(rate.times(ratio))


def adam(state: Sequence[Rounded], grad: Rounded, dtype: torch.dtype) -> list[Rounded]:
    moments = _moments(state, grad)
    eps = ADAM["eps"] * (1 - ADAM["beta2"] ** ADAM["step"]) ** 0.5
    return [_moved(state[0], moments, eps), *(m.stored(dtype) for m in moments)]


class _Head(NamedTuple):
    """A, b, the moments of A and those of b, on the device."""

    weight: Tensor
    bias: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    bias_exp_avg: Tensor
    bias_exp_avg_sq: Tensor

    def states(self) -> tuple[list[Rounded], list[Rounded]]:
        """Return A and b, each with its moments."""
        weight, bias, *moments = map(exact, self)
        return [weight, *moments[:2]], [bias, *moments[2:]]

    def copies(self) -> _Head:
        return _Head(*(tensor.clone() for tensor in self))


def _head(draw: Draw, rows: int, width: int, dtype: torch.dtype = torch.float32) -> _Head:
    def second(*shape: int) -> Tensor:
        # So far from 0 that roundings of its root are small.
        return draw.put(0.25 + draw.normal(*shape).cpu().square(), dtype)

    moments = [
        draw.normal(rows, width, dtype=dtype),
        second(rows, width),
        draw.normal(rows, dtype=dtype),
        second(rows),
    ]
    return _Head(draw.normal(rows, width), draw.normal(rows), *moments)


def _logits(weight: Rounded, bias: Rounded, hidden: Rounded) -> Rounded:
    return matmul(hidden, weight.transposed()).plus(bias)


def mask_logits(draw: Draw, rows: int, width: int, count: int) -> Case:
    from hypermask_fast.kernels.head.logits import mask_logits as kernel

    weight, bias, hidden = draw.normal(rows, width), draw.normal(rows), draw.normal(count, width)
    return Case(
        lambda: [kernel(weight, bias, hidden)],
        lambda: {"z": _logits(exact(weight), exact(bias), exact(hidden))},
    )


def hidden_grad(draw: Draw, rows: int, width: int, count: int) -> Case:
    from hypermask_fast.kernels.head.hidden_grad import hidden_grad as kernel

    weight, dz = draw.normal(rows, width), draw.normal(count, rows)
    return Case(lambda: [kernel(weight, dz)], lambda: {"dhidden": matmul(exact(dz), exact(weight))})


def factored_adam(draw: Draw, rows: int, width: int, count: int, dtype: torch.dtype) -> Case:
    from hypermask_fast.kernels.head.adam import factored_adam as kernel

    head, dz = _head(draw, rows, width, dtype), draw.normal(count, rows)
    hidden = draw.normal(count, width)

    def launch() -> list[Tensor]:
        new = head.copies()
        names = ("bias", "bias_exp_avg", "bias_exp_avg_sq")
        of_bias = dict(zip(names, (new.bias, *new[4:]), strict=True))
        kernel(new.weight, *new[2:4], dz, hidden, _scalars(draw.device), **of_bias)
        return [*new]

    def right() -> dict[str, Right]:
        of_weight, of_bias = head.states()
        factors = exact(dz)
        grads = matmul(factors.transposed(), exact(hidden)), factors.sum(0)
        return _named(adam(of_weight, grads[0], dtype), adam(of_bias, grads[1], dtype))

    return Case(launch, right)


def _named(of_weight: Sequence[Rounded], of_bias: Sequence[Rounded]) -> dict[str, Right]:
    """Return the results of a step in the order of a :class:`_Head`."""
    names = ("A", "b", "m of A", "v of A", "m of b", "v of b")
    parts = (of_weight[0], of_bias[0], *of_weight[1:], *of_bias[1:])
    return dict(zip(names, parts, strict=True))


def earlier_logits(
    draw: Draw, rows: int, width: int, earlier: int, dtype: torch.dtype = torch.float32
) -> Case:
    from hypermask_fast.kernels.head.step import earlier_logits as kernel

    weight, bias, hidden = draw.normal(rows, width), draw.normal(rows), draw.normal(earlier, width)
    return Case(
        lambda: [kernel(weight, bias, hidden, dtype=dtype)],
        lambda: {"z": _logits(exact(weight), exact(bias), exact(hidden)).stored(dtype)},
    )


def unchanged(draw: Draw, rows: int, width: int, earlier: int, dtype: torch.dtype) -> Case:
    """The residuals of a head that did not change, which are exactly 0."""
    from hypermask_fast.kernels.head.step import earlier_logits as logits
    from hypermask_fast.kernels.head.step import step_rows as kernel

    head, dz = _head(draw, rows, width, dtype), draw.normal(rows)
    hidden, coefficient = draw.normal(earlier + 1, width), draw.number(_COEFFICIENT)

    def launch() -> list[Tensor]:
        targets = logits(head.weight, head.bias, hidden[1:], dtype=dtype)
        inputs, scalars = (*head.copies(), dz, hidden, targets), _scalars(draw.device)
        return [kernel(*inputs, coefficient=coefficient, scalars=scalars)[1]]

    return Case(launch, lambda: {"the residual of no change": torch.zeros((), dtype=torch.float64)})


def _step(
    kernel: Callable[..., tuple[Tensor, Tensor]],
    looks_ahead: bool,
    draw: Draw,
    rows: int,
    width: int,
    earlier: int,
    dtype: torch.dtype,
) -> Case:
    """A step with targets so far away that no logit rounds to one."""
    head, dz = _head(draw, rows, width, dtype), draw.normal(rows)
    hidden = draw.normal(earlier + 1, width)
    coefficient = draw.number(_COEFFICIENT)
    far = _logits(exact(head.weight), exact(head.bias), exact(hidden[1:])).value.float()
    far = far + (1 + far.abs()) * draw.normal(earlier, rows).cpu().sign()
    targets = draw.put(far, dtype)

    def launch() -> list[Tensor]:
        new = head.copies()
        inputs, scalars = (*new, dz, hidden, targets), _scalars(draw.device)
        grad, squares = kernel(*inputs, coefficient=coefficient, scalars=scalars)
        return [*new, grad, squares]

    def right() -> dict[str, Right]:
        of_weight, of_bias = head.states()
        weight, bias = of_weight[0], of_bias[0]
        current, given = exact(hidden[:1]), exact(dz[None])
        if looks_ahead:
            along = given.transposed().times(current)
            weight = _moved(weight, _moments(of_weight, along), ADAM["eps"])
            bias = _moved(bias, _moments(of_bias, exact(dz)), ADAM["eps"])
        residual = _logits(weight, bias, exact(hidden[1:])).minus(exact(targets))
        factors = residual.times(number(_COEFFICIENT))
        whole = Rounded(*(torch.cat(parts) for parts in zip(given, factors, strict=True)))
        of_hidden = matmul(whole, weight)
        if looks_ahead:
            later = torch.arange(earlier + 1)[:, None] > 0
            of_hidden = of_hidden.where(later)
        of_a = matmul(whole.transposed(), exact(hidden))
        new = adam(of_weight, of_a, dtype), adam(of_bias, whole.sum(0), dtype)
        squares = residual.times(residual).sum()
        return {**_named(*new), "dhidden": of_hidden, "the sum of squares": squares}

    return Case(launch, right)


def step_rows(draw: Draw, rows: int, width: int, earlier: int, dtype: torch.dtype) -> Case:
    from hypermask_fast.kernels.head.step import step_rows as kernel

    return _step(kernel, False, draw, rows, width, earlier, dtype)


def step_ahead(draw: Draw, rows: int, width: int, earlier: int, dtype: torch.dtype) -> Case:
    from hypermask_fast.kernels.head.ahead import step_ahead as kernel

    return _step(partial(kernel, eps=ADAM["eps"]), True, draw, rows, width, earlier, dtype)


_FLOAT, _BRAIN = torch.float32, torch.bfloat16
# One pass, two of products, also of more than half of a product of 64, and three.
_ONE, _TWO, _MANY, _THREE = (37, 21, 2), (37, 21, 17), (37, 40, 40), (19, 261, 2)
_STEPS = ((_ONE, _FLOAT), (_ONE, _BRAIN), (_TWO, _FLOAT), (_MANY, _FLOAT), (_THREE, _FLOAT))


def _steps(
    case: Callable[..., Case], steps: Sequence[tuple[tuple[int, int, int], torch.dtype]]
) -> list[Callable[[Draw], Case]]:
    return [
        partial(case, rows=rows, width=width, earlier=earlier, dtype=dtype)
        for (rows, width, earlier), dtype in steps
    ]


CASES: dict[str, list[Callable[[Draw], Case]]] = {
    "mask_logits": [partial(mask_logits, rows=37, width=21, count=n) for n in (1, 3)],
    "hidden_grad": [partial(hidden_grad, rows=37, width=21, count=n) for n in (1, 3)],
    "factored_adam": [
        partial(factored_adam, rows=37, width=width, count=n, dtype=dtype)
        for width, n, dtype in (
            (21, 1, _FLOAT),
            (21, 1, _BRAIN),
            (21, 17, _FLOAT),
            (40, 41, _FLOAT),
        )
    ],
    "earlier_logits": _steps(earlier_logits, _STEPS),
    "step_rows": [
        *_steps(step_rows, _STEPS),
        *_steps(unchanged, _STEPS),
        # The width of most hypernetworks, without earlier tasks and with some.
        *_steps(step_rows, [((37, 100, earlier), _FLOAT) for earlier in (0, 9, 17)]),
    ],
    "step_ahead": _steps(step_ahead, _STEPS[:2]),
}
"""Cases by the kernel that they are of."""
