"""The figures of a comparison: accuracy against what is stored, and accuracy by task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hypermask_fast.figures.charts import Array, Chart, Lines, Points, Series
from hypermask_fast.figures.labels import shortened
from hypermask_fast.metrics.statistics import Interval
from hypermask_fast.studies.comparison_result import Comparison

PARETO, BY_TASK = "compare-pareto", "compare-tasks"
"""The names of the figures' files, without an ending."""

_WIDE = 20.0
"""From which ratio on an axis is logarithmic."""


def charts(found: Comparison) -> list[Chart]:
    """Return the figures of the methods of which a run ended; none where none did."""
    methods = [method for method in found.config.runs if found.ended(method)]
    return [_pareto(found, methods), _by_task(found, methods)] if methods else []


def front(cost: Array, gain: Array) -> list[int]:
    """Return the places that no other one dominates, by rising cost.

    One dominates another where it costs no more and gains no less, and is better in one of both.

    Args:
        cost, gain: (n,), of each place.
    """
    kept = [
        i
        for i in range(len(cost))
        if not np.any((cost <= cost[i]) & (gain >= gain[i]) & ((cost < cost[i]) | (gain > gain[i])))
    ]
    return sorted(kept, key=lambda i: (cost[i], i))


def _pareto(found: Comparison, methods: Sequence[str]) -> Points:
    accuracy = [found.figure(method, "acc") for method in methods]
    stored = np.array([found.figure(method, "mb_stored").mean for method in methods])
    acc = np.array([each.mean for each in accuracy])
    several = len(found.config.all_seeds) > 1
    return Points(
        name=PARETO,
        title="Accuracy and what is stored",
        note="A line joins the methods that no other one beats in both; bars are 95 % intervals "
        "over seeds, as far as they lie within 0 to 100 %.",
        names=methods,
        labels=methods,
        x=stored,
        y=acc,
        x_title="MB stored after the last task",
        y_title="ACC: mean accuracy at the end (%)",
        bars=_ends(accuracy) if several else None,
        joined=front(stored, acc),
        log_x=bool(stored.max() > _WIDE * stored.min() > 0),
    )


def _ends(found: Sequence[Interval]) -> Array:
    """Return where intervals of accuracies begin and end, (2, n), within 0 to 100 %."""
    mean, half = np.array([(each.mean, each.half) for each in found]).T
    return np.clip([mean - half, mean + half], 0.0, 100.0)


def _by_task(found: Comparison, methods: Sequence[str]) -> Lines:
    lines = []
    for method in methods:
        means = found.by_task(method)
        mean = np.array([each.mean for each in means])
        low, high = (np.where(np.isnan(end), mean, end) for end in _ends(means))
        lines.append(Series(method, np.arange(1.0, len(means) + 1), mean, low, high))
    return Lines(
        name=BY_TASK,
        title="Accuracy of each task at the end",
        note="Bands are 95 % intervals over seeds, as far as they lie within 0 to 100 %.",
        series=lines,
        x_title="task",
        y_title="accuracy at the end (%)",
        x_labels=shortened(found.task_names),
    )
