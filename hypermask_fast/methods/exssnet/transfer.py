"""KKT: which earlier task's scores a new task begins with, by its nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.errors import ConfigError
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.methods.exssnet.settings import ExSSNeTSettings
from hypermask_fast.scenarios import Task

_REFERENCES = 0.66
_QUERIES_AT_ONCE = 256


def _batches(data: object, settings: ExSSNeTSettings, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the batches that are looked at: of a task shuffled ones, else those that are given."""
    if isinstance(data, Task):
        stream = data.stream(settings.kkt_batch, seed=seed)
        count = math.ceil(settings.kkt_share * stream.steps_per_epoch) + 1
        return (stream.batch(step) for step in range(min(count, stream.steps_per_epoch)))
    if isinstance(data, Iterable):
        return iter(data)
    raise ConfigError(
        f"kkt={settings.kkt!r} looks at the task's data, and begin_task() was given "
        f"{type(data).__name__}; give data=, a Task or batches (x, y), or use kkt='off'"
    )


def _put_out_before_last(net: nn.Module, x: Tensor) -> Tensor:
    """Return what the layer puts out, (batch, ...) flattened, that runs before the last one."""
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda *given: seen.append(given[2]))
        for module in net.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        net(x)
    finally:
        for hook in hooks:
            hook.remove()
    if len(seen) < 2:
        raise ConfigError(
            "kkt_features='outputs' needs two layers with parameters; use kkt_features='inputs'"
        )
    return seen[-2].flatten(1)


def features(learner: Learner, x: Tensor, task: int, kind: str) -> Tensor:
    """Return what is compared of a batch under a task's mask, (batch, features)."""
    with evaluating(learner):
        if kind == "inputs":
            return learner.features(x, task).flatten(1)
        with learner.activated(task) as net:
            return _put_out_before_last(net, x)


def predicted(found: Tensor, labels: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Return the classes that neighbours vote for, and the right ones.

    The first 66 % of the rows are references, the others are told apart by them; equal votes go to
    the lowest class.

    Args:
        found: (n, features).
        labels: int64 (n,).
        neighbours: How many vote, at most as many as there are references.

    Raises:
        ConfigError: There is no row to compare.
    """
    count = int(_REFERENCES * len(found))
    if count < 1:
        raise ConfigError(
            f"kkt was given {len(found)} examples and needs at least 2; raise kkt_share or "
            "kkt_batch, or use kkt='off'"
        )
    references, classes = found[:count], labels[:count]
    votes = torch.nn.functional.one_hot(classes, int(labels.max()) + 1)
    answers = []
    for part in found[count:].split(_QUERIES_AT_ONCE):
        away = torch.cdist(part, references, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = away.topk(min(neighbours, count), largest=False).indices
        answers.append(votes[nearest].sum(1).argmax(1))
    return torch.cat(answers), labels[count:]


def donors(
    learner: Learner,
    earlier: Sequence[int],
    task: int,
    data: object,
    settings: ExSSNeTSettings,
    seed: int,
) -> list[int]:
    """Return the earlier tasks whose mean scores a new task begins with; none: it has new ones.

    Args:
        learner: The learner, the new task being the current one.
        earlier: The tasks that were learned.
        task: The new task.
        data: What it is learned from: a :class:`Task`, or batches (x, y).
        settings: How.
        seed: Of the batches.

    Raises:
        ConfigError: There are no data, or too few.
    """
    batches: list[Any] = list(islice(_batches(data, settings, seed), None))
    labels = torch.cat([y for _, y in batches])
    ranked = []
    for other in sorted(earlier):
        rows = [features(learner, x, other, settings.kkt_features) for x, _ in batches]
        found, right = predicted(torch.cat(rows), labels, settings.kkt_neighbours)
        ranked.append((float((found == right).float().mean()), other))
    classes = learner.tasks[task].classes
    count = int(labels.max()) + 1 if classes is None else len(classes)
    best = max(ranked, key=lambda pair: (pair[0], -pair[1]))
    if settings.kkt == "knn_always":
        return [best[1]]
    # As float32, in which the accuracies are.
    chance = float(torch.tensor(1.0) / count)
    if settings.kkt == "knn_best":
        return [best[1]] if best[0] > chance else []
    return [other for accuracy, other in ranked if accuracy > chance]
