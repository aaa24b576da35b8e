"""Which task a batch is of, by the gradient of a blend of all tasks' masks (SupSup)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hypermask_fast.errors import ConfigError, InferenceError, nearest
from hypermask_fast.methods.base import Learner, check_learner
from hypermask_fast.methods.batches import check_devices

OBJECTIVES = ("entropy", "g")


class Inferred(NamedTuple):
    """What :func:`one_shot` and :func:`binary` return.

    Attributes:
        task: The id of the task that was found.
        alpha: (passes, tasks), the factors of each pass; 0 for tasks that it left out.
        grad: (passes, tasks), the objective's gradient by them.
        objective: (passes,), its values.
    """

    task: int
    alpha: Tensor
    grad: Tensor
    objective: Tensor


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of softmax over the rows, 0-d; finite for finite logits.

    Args:
        logits: (batch, outputs).
    """
    return entropies(logits).mean()


def entropies(logits: Tensor) -> Tensor:
    """Return the entropy of each row, (batch,), as :func:`entropy`."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def superfluous(logits: Tensor, classes: int) -> Tensor:
    """Return G of each row, (batch,), of which SupSup's objective is the mean.

    The logsumexp of all outputs, with a gradient through those after the classes only.

    Args:
        logits: (batch, outputs).
        classes: Outputs that stand for a class.

    Raises:
        ConfigError: There is no output after them, and so no gradient.
    """
    if not 0 < classes < logits.shape[1]:
        raise ConfigError(
            f"objective='g' needs outputs beyond the {classes} classes and the network has "
            f"{logits.shape[1]}; train with superfluous outputs, or use objective='entropy'"
        )
    split = torch.cat((logits[:, :classes].detach(), logits[:, classes:]), 1)
    return split.logsumexp(1)


def _objective(name: str, learner: Learner, classes: int | None) -> Callable[[Tensor], Tensor]:
    """Return the objective of each row, (batch,), of logits."""
    if name not in OBJECTIVES:
        raise ConfigError(
            f"objective is {name!r}{nearest(name, OBJECTIVES)}; use one of {', '.join(OBJECTIVES)}"
        )
    if name == "entropy":
        return entropies
    if classes is None:
        known = [len(record.classes) for record in learner.tasks if record.classes is not None]
        if not known:
            raise ConfigError(
                "objective='g' must know which outputs stand for classes, and no task says so; "
                "give classes="
            )
        classes = max(known)
    count = classes
    return lambda logits: superfluous(logits, count)


def _candidates(learner: Learner, tasks: Sequence[int | str] | None) -> list[int]:
    given = learner.learned if tasks is None else tasks
    chosen = sorted(set(map(learner.task_id, given)))
    if not chosen:
        raise ValueError("no task was learned, so none can be inferred; learn one, or give tasks=")
    return chosen


def gradient_of(
    learner: Learner, x: Tensor, alpha: Tensor, objective: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return an objective of the blend of all tasks, and its gradient by alpha.

    One forward and one backward, however many tasks there are.

    Args:
        learner: The learner, in the mode that it is to run in.
        x: Inputs (batch, ...).
        alpha: (tasks,).
        objective: Of the logits (batch, outputs).

    Returns:
        The objective, 0-d, and (tasks,).
    """
    alpha = alpha.detach().clone().requires_grad_()
    with torch.enable_grad(), learner.blended(alpha) as net:
        value = objective(net(x))
        (grad,) = torch.autograd.grad(value, alpha)
    return value.detach(), grad


def gradients_of_rows(
    learner: Learner,
    x: Tensor,
    tasks: Sequence[int],
    batch_size: int,
    *,
    objective: str = "entropy",
    classes: int | None = None,
) -> Tensor:
    """Return the objective's gradient of each row alone, (tasks, batch), at equal shares.

    What one row gives is a derivative along one task's weights: a forward for each task, in which
    derivatives are taken forward, does that of all rows.

    Args:
        learner: The learner, in the mode that it is to run in.
        x: Inputs (batch, ...).
        tasks: Ids of the tasks that have a share.
        batch_size: Rows that run together.
        objective, classes: As for :func:`one_shot`.

    Raises:
        ValueError: As for :func:`one_shot`.
    """
    of_rows = _objective(objective, learner, classes)
    alpha = x.new_zeros(len(learner.tasks))
    alpha[list(tasks)] = 1 / len(tasks)
    found = []
    for task in tasks:
        along = torch.zeros_like(alpha)
        along[task] = 1
        # Where gradients are asked for, batch norm by blended statistics has derivatives.
        with torch.enable_grad(), forward_ad.dual_level():
            shares = forward_ad.make_dual(alpha.clone().requires_grad_(), along)
            with learner.blended(shares) as net:
                parts = [
                    forward_ad.unpack_dual(of_rows(net(rows))).tangent.detach()
                    for rows in x.split(batch_size)
                ]
        found.append(torch.cat(parts))
    return torch.stack(found)


def one_shot(
    learner: Learner,
    x: Tensor,
    *,
    objective: str = "entropy",
    rows: int | None = None,
    classes: int | None = None,
    tasks: Sequence[int | str] | None = None,
) -> Inferred:
    """Infer the task of a batch in one forward and one backward: the argmin of the gradient.

    Published with ``rows=1``: by the first image alone.

    Args:
        learner: The learner; call ``eval()`` before.
        x: Inputs (batch, ...), all of one task.
        objective: "entropy" of the outputs, or "g", which needs outputs beyond the classes. Default
            "entropy".
        rows: How many of the first inputs are looked at. Default: all.
        classes: Outputs that stand for a class, for "g". Default: those of the largest task.
        tasks: Ids to choose from. Default: those that were learned.

    Raises:
        ValueError: The objective is unknown or has no outputs to look at, there is no task to
            choose from, or no input.
    """
    return _search(learner, x, None, objective, rows, classes, tasks)[0]


def binary(
    learner: Learner,
    x: Tensor,
    *,
    base: int = 2,
    objective: str = "entropy",
    rows: int | None = None,
    classes: int | None = None,
    tasks: Sequence[int | str] | None = None,
) -> Inferred:
    """Infer the task of a batch in about log2(tasks) passes, each of which keeps the lower half.

    Of n tasks that are left, those stay whose gradient is at most that at the place
    ``(n - 1) // base`` of the ascending order.

    Args:
        learner, x, objective, rows, classes, tasks: As for :func:`one_shot`.
        base: The inverse of the share that a pass keeps, at least 2. Default 2.

    Raises:
        ValueError: As :func:`one_shot`; the base is less than 2; or the gradients of all tasks are
            equal, so that nothing tells them apart.
    """
    if base < 2:
        raise ValueError(f"base is {base}; give 2 or more")
    found, left = _search(learner, x, base, objective, rows, classes, tasks)
    if len(left) > 1:
        raise ConfigError(
            f"the gradients of tasks {left} are {found.grad[-1][left].tolist()}, which does not "
            "tell them apart; give more rows, or another objective"
        )
    return found


def passes_stayed(
    learner: Learner,
    x: Tensor,
    *,
    base: int = 2,
    objective: str = "entropy",
    rows: int | None = None,
    classes: int | None = None,
    tasks: Sequence[int | str] | None = None,
) -> Tensor:
    """Return after how many passes of :func:`binary` each task is left, (tasks,).

    Where a pass cannot tell tasks apart, the search ends with all of them.
    """
    found, left = _search(learner, x, base, objective, rows, classes, tasks)
    stayed = (found.alpha[1:] != 0).sum(0)
    stayed[left] = len(found.alpha)
    return stayed


def recognized(
    learner: Learner,
    x: Tensor,
    *,
    objective: str = "g",
    factor: float = 1.125,
    least: int = 5,
    classes: int | None = None,
) -> int | None:
    """Return which task a batch of a stream without boundaries is of, or None for a new one.

    With a share of 1 / k for each of k tasks, nu = softmax(-gradient); a batch whose largest nu is
    below ``factor / k`` is of a new task. The k tasks are those that were learned, the current one,
    and, until there are ``least``, others that were added, whose masks are random. To be asked
    every 100 batches as published (NNs): where it returns None, end the current task and begin one
    that was not begun.

    Args:
        learner: The learner.
        x: Inputs (batch, ...).
        objective, classes: As for :func:`one_shot`. Default "g".
        factor: Above 1: how far the best task must stand out. Default 1.125.
        least: Tasks that are compared at least, of those that were added. Default 5.

    Raises:
        ValueError: No task was begun, fewer than two were added, or as for :func:`one_shot`.
    """
    known = sorted({*learner.learned, *([] if learner.current is None else [learner.current])})
    others = [task for task in range(len(learner.tasks)) if task not in known]
    compared = sorted([*known, *others[: max(0, least - len(known))]])
    if not known or len(compared) < 2:
        raise ValueError(
            f"{len(known)} tasks were begun and {len(learner.tasks)} were added; begin one and add "
            "another, so that there is something to compare"
        )
    found = one_shot(learner, x, objective=objective, classes=classes, tasks=compared)
    shares = (-found.grad[0][compared]).softmax(0)
    best = compared[int(shares.argmax())]
    return best if float(shares.max()) >= factor / len(compared) and best in known else None


def _search(
    learner: Learner,
    x: Tensor,
    base: int | None,
    objective: str,
    rows: int | None,
    classes: int | None,
    tasks: Sequence[int | str] | None,
) -> tuple[Inferred, list[int]]:
    """Return the result, and the tasks that are left: several where nothing tells them apart."""
    check_learner(learner)
    check_devices(next(learner.parameters()).device, inputs=x)
    left = _candidates(learner, tasks)
    aim = _objective(objective, learner, classes)
    x = x if rows is None else x[:rows]
    if not len(x):
        raise ValueError(f"inputs have shape {tuple(x.shape)} with rows={rows}; give at least one")
    passes: list[tuple[Tensor, Tensor, Tensor]] = []
    while base is None or len(left) > 1 or not passes:
        alpha = x.new_zeros(len(learner.tasks))
        alpha[left] = 1 / len(left)
        value, grad = gradient_of(learner, x, alpha, lambda logits: aim(logits).mean())
        passes.append((alpha, grad, value))
        of_left = grad[left]
        if not of_left.isfinite().all():
            raise InferenceError(
                f"the objective's gradient is {of_left.tolist()}; the inputs or weights are not "
                "finite"
            )
        if base is None or len(left) == 1:
            left = [left[int(of_left.argmin())]]
            break
        bound = of_left.sort().values[(len(left) - 1) // base]
        kept = [task for task, g in zip(left, of_left.tolist(), strict=True) if g <= float(bound)]
        if len(kept) == len(left):
            break
        left = kept
    alphas, grads, values = (torch.stack(parts) for parts in zip(*passes, strict=True))
    return Inferred(left[0], alphas, grads, values), left
