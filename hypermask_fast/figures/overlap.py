"""How much the tasks' networks have in common."""

from __future__ import annotations

import numpy as np

from hypermask_fast.figures.charts import Array, Heat
from hypermask_fast.figures.inside import Inside
from hypermask_fast.figures.labels import shortened


def similarity(shared: Array, kept: Array, *, binary: bool) -> Array:
    """Return how alike tasks are, (..., tasks, tasks), in percent; NaN where both have nothing.

    Args:
        shared, kept: As in :class:`Inside`, of some layers or of their sum.
        binary: Of masks: the entries that both keep of those that either does (intersection over
            union). Else of weights: the cosine.
    """
    a, b = kept[..., :, None], kept[..., None, :]
    whole = a + b - shared if binary else np.sqrt(a * b)
    nothing = np.full(shared.shape, np.nan)
    return np.divide(100.0 * shared, whole, out=nothing, where=whole > 0)


def overlap(found: Inside) -> list[Heat]:
    """Return the figures of the overlap of the tasks' masks or weights, whole and by layer."""
    what = "masks" if found.binary else "weights"
    measure = "intersection over union of kept entries" if found.binary else "cosine of weights"
    labels = shortened(found.tasks)
    note = f"In percent: {measure}."
    if found.every > 1:
        note += f" Of each tensor, one entry in {found.every} was looked at."
    whole = similarity(found.shared.sum(0), found.kept.sum(0), binary=found.binary)
    layers = similarity(found.shared, found.kept, binary=found.binary)
    of_two = _with_others(layers)
    low = float(min(0.0, np.nanmin(whole, initial=0.0)))
    figures = [
        Heat(
            name="mask-overlap" if found.binary else "weight-overlap",
            title=f"What the tasks' {what} have in common",
            note=note,
            values=whole,
            row_names=found.tasks,
            column_names=found.tasks,
            row_labels=labels,
            column_labels=labels,
            row_title="task",
            column_title="task",
            value_title=f"{'IoU' if found.binary else 'cosine'} (%)",
            low=low,
        )
    ]
    if len(found.tasks) > 1:
        figures.append(
            Heat(
                name=f"{figures[0].name}-by-layer",
                title="The same by layer: each task with all others",
                note="Means over the other tasks, in percent; blank where nothing is kept.",
                values=of_two,
                row_names=found.layers,
                column_names=found.tasks,
                row_labels=shortened(found.layers, 22),
                column_labels=labels,
                row_title="tensor",
                column_title="task",
                value_title=f"{'IoU' if found.binary else 'cosine'} (%)",
                low=float(min(0.0, np.nanmin(of_two, initial=0.0))),
            )
        )
    return figures


def _with_others(layers: Array) -> Array:
    """Return the mean of each task with all others, (layers, tasks)."""
    count = layers.shape[-1]
    others = np.where(np.eye(count, dtype=bool), np.nan, layers)
    known = ~np.isnan(others)
    sums = np.where(known, others, 0.0).sum(-1)
    nothing = np.full(sums.shape, np.nan)
    return np.divide(sums, known.sum(-1), out=nothing, where=known.any(-1))
