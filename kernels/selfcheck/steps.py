"""Cases of the kernels that a step launches beside those of head, masks and layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hypermask_fast.kernels.selfcheck.case import Case, Draw, Right
from hypermask_fast.kernels.selfcheck.head import ADAM, adam
from hypermask_fast.kernels.selfcheck.rounded import EPS, Rounded, exact, matmul, number

_FACTOR = 0.25
_OPTIONS: dict[str, Any] = {"weight_decay": 0.0, "decoupled": False, "maximize": False}
_IDS = (3, 0, 4)
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "relu": F.relu,
    "tanh": torch.tanh,
}


def begin_step(draw: Draw, is_finite: bool) -> Case:
    """How a step begins, whose gradient is finite or not."""
    from hypermask_fast.kernels.finite import flags_of
    from hypermask_fast.kernels.head.begin import begin as kernel

    dz = draw.normal(10_003)
    if not is_finite:
        dz[9_001] = torch.inf
    numbers = {name: ADAM[name] for name in ("lr", "beta1", "beta2", "eps")}
    before, coefficient = [draw.number(2.0), draw.number(5.0)], draw.number(0.1)
    options = {"coefficient": coefficient, "factor": _FACTOR, **numbers, **_OPTIONS}

    def launch() -> list[Tensor]:
        counts = [count.clone() for count in before]
        begun = kernel(flags_of(dz), counts, **options)
        told = torch.stack((begun.taken, begun.skipped, *counts))
        return [begun.finite, told, begun.scalars, begun.coefficient]

    def right() -> dict[str, Right]:
        taken = float(is_finite)
        step, beta1, beta2 = 2 + taken, ADAM["beta1"], ADAM["beta2"]
        root = (1 - beta2**step) ** 0.5
        size = ADAM["lr"] * root / (1 - beta1**step)
        table = (1, 1, 0, 1 - beta1, beta2, 1 - beta2, ADAM["eps"] * root, size, 1 - taken)
        wide = torch.tensor(table, dtype=torch.float64)
        told = torch.tensor([taken, 1 - taken, 2 + taken, 5 + taken])
        return {
            "whether it is finite": torch.tensor(is_finite),
            "the counts": told,
            "the step's numbers": Rounded(wide, 2 * EPS * wide.abs()),
            "the coefficient": number(0.1 * _FACTOR),
        }

    return Case(launch, right)


def adam_table(draw: Draw) -> Case:
    """A table of which two rows have no gradient."""
    from hypermask_fast.kernels.optim.rows import adam_rows as kernel

    grad, moves = draw.normal(5, 21), torch.tensor([True, False, True, False, True])
    grad = grad * draw.put(moves)[:, None]
    second = draw.put(0.25 + draw.normal(5, 21).cpu().square())
    before = draw.normal(5, 21), draw.normal(5, 21), second

    def launch() -> list[Tensor]:
        table, *moments = (tensor.clone() for tensor in before)
        kernel(table, moments[0], moments[1], grad, **ADAM, **_OPTIONS)
        return [table, *moments]

    def right() -> dict[str, Right]:
        old = [exact(tensor) for tensor in before]
        new = adam(old, exact(grad), torch.float32)
        chosen = moves[:, None].expand(5, 21)
        names = ("the table", "m of the table", "v of the table")
        return {
            name: Rounded(torch.where(chosen, n.value, o.value), n.where(chosen).error)
            for name, n, o in zip(names, new, old, strict=True)
        }

    return Case(launch, right)


def trunk(draw: Draw, activation: str, has_ids: bool) -> Case:
    from hypermask_fast.kernels.hypernetworks.trunk import forward as kernel

    x, weight, bias = draw.normal(5, 70), draw.normal(37, 70), draw.normal(37)
    ids = draw.put(torch.tensor(_IDS)) if has_ids else None

    def right() -> dict[str, Right]:
        rows = exact(x if ids is None else x[ids])
        z = matmul(rows, exact(weight).transposed()).plus(exact(bias))
        # No slope is above 1; a function is off by a few roundings of 1.
        return {"y": Rounded(_FUNCTIONS[activation](z.value), z.error + 8 * EPS)}

    return Case(lambda: [kernel(x, ids, weight, bias, activation)], right)


def trunk_backward(draw: Draw, activation: str, has_ids: bool) -> Case:
    from hypermask_fast.kernels.hypernetworks.trunk import backward as kernel

    x, weight = draw.normal(5, 70), draw.normal(37, 70)
    count = len(_IDS) if has_ids else len(x)
    y, grad = _FUNCTIONS[activation](draw.normal(count, 37)), draw.normal(count, 37)
    ids = draw.put(torch.tensor(_IDS)) if has_ids else None

    def launch() -> list[Tensor]:
        of_x, *of_layer = kernel(x, ids, weight, y, grad, activation)
        assert of_x is not None
        return [of_x, *of_layer]

    def right() -> dict[str, Right]:
        out, one = exact(y), number(1.0)
        if activation == "tanh":
            slope = one.minus(out.times(out))
        else:
            below = out.plus(one) if activation == "elu" else out.where(out.value > out.value)
            above = out.value > 0
            slope = Rounded(torch.where(above, 1, below.value), below.where(~above).error)
        a = exact(grad).times(slope)
        names = torch.arange(count) if ids is None else ids.cpu()
        named = exact(F.one_hot(names, len(x)).float())
        return {
            "dx": matmul(named.transposed(), matmul(a, exact(weight))),
            "dW": matmul(a.transposed(), matmul(named, exact(x))),
            "db": a.sum(0),
        }

    return Case(launch, right)


def total(draw: Draw) -> Case:
    from hypermask_fast.kernels.losses import term_gradients
    from hypermask_fast.kernels.losses import total as kernel

    task, first, second = (draw.number(value) for value in (0.7, 0.3, 11.0))

    def right() -> dict[str, Right]:
        factors, losses = [number(0.5), number(0.01)], [exact(t) for t in (task, first, second)]
        whole = losses[0]
        for loss, factor in zip(losses[1:], factors, strict=True):
            whole = whole.plus(loss.times(factor))
        grads = [losses[0].times(factor) for factor in factors]
        both = Rounded(*(torch.stack(parts) for parts in zip(*grads, strict=True)))
        return {"the total": whole, "the gradients of its terms": both}

    def launch() -> list[Tensor]:
        factors = (0.5, 0.01)
        return [kernel(task, (first, second), factors), term_gradients(task, factors)]

    return Case(launch, right)


def complete(draw: Draw) -> Case:
    from hypermask_fast.kernels.losses import complete as kernel

    squares = draw.put(torch.tensor(3.7, dtype=torch.float64))
    before = [draw.number(value) for value in (0.0, 0.7, 1.9)]

    def launch() -> list[Tensor]:
        regularizer, *losses = (loss.clone() for loss in before)
        kernel(squares, 3, regularizer, losses, 0.01)
        return [regularizer, *losses]

    def right() -> dict[str, Right]:
        regularizer = number(3.7 / 3)
        more = regularizer.times(number(0.01))
        sums = [number(value).plus(more) for value in (0.7, 1.9)]
        return {"the regularizer": regularizer, "a loss": sums[0], "the total": sums[1]}

    return Case(launch, right)


def batch(draw: Draw, cropped: bool) -> Case:
    """Images that are permuted; or padded, cropped, mirrored and normalised."""
    from hypermask_fast.kernels.scenarios.gather import batch as kernel

    images = draw.put((128 + 60 * draw.normal(7, 3, 5, 6).cpu()).clamp(0, 255).to(torch.uint8))
    columns = [[6, 0, 3, 5, 1], [2, 1, 0, 2, 1]] + cropped * [[0, 2, 1, 0, 2], [1, 0, 2, 1, 1]]
    table = torch.tensor([*columns, *[[0, 1, 0, 1, 1]] * cropped]).t().contiguous()
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    mean, std = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]) if cropped else ([0.0] * 3, [1.0] * 3)
    scale = {"mean": mean, "std": std}
    options: dict[str, Any] = {"permutation": draw.put(order)}
    if cropped:
        options = {"pad": 1, "crop": 1}
        options |= {n: draw.put(torch.tensor(v)[:, None, None]) for n, v in scale.items()}
    rows, first = draw.put(table), draw.put(torch.tensor(1))

    def right() -> dict[str, Right]:
        padded = F.pad(images.cpu(), [2 * cropped] * 4)
        found = []
        for example, _, *drawn in table[torch.arange(3, 6) % 5].tolist():
            image = padded[example]
            if cropped:
                top, left, mirrored = drawn
                image = image[:, top : top + 7, left : left + 8]
                image = image.flip(-1) if mirrored else image
            else:
                image = image.flatten()[order].view(3, 5, 6)
            found.append(image)
        x = exact(torch.stack(found)).times(number(1 / 255))
        means, stds = (
            Rounded(*(part[:, None, None] for part in exact(torch.tensor(scale[name]))))
            for name in ("mean", "std")
        )
        return {
            "the inputs": x.minus(means).over(stds),
            "the labels": table[torch.arange(3, 6) % 5, 1],
        }

    return Case(lambda: [*kernel(images, rows, first, 3, **options)], right)


CASES: dict[str, list[Callable[[Draw], Case]]] = {
    "begin_step": [partial(begin_step, is_finite=value) for value in (True, False)],
    "adam_table": [adam_table],
    "trunk": [
        partial(trunk, activation=name, has_ids=name != "relu") for name in ("elu", "relu", "tanh")
    ],
    "trunk_backward": [
        partial(trunk_backward, activation=name, has_ids=name != "relu")
        for name in ("elu", "relu", "tanh")
    ],
    "total": [total],
    "complete": [complete],
    "batch": [partial(batch, cropped=value) for value in (False, True)],
}
"""Cases by the kernel that they are of."""
