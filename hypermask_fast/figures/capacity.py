"""How much of the target network the tasks use."""

from __future__ import annotations

import numpy as np

from hypermask_fast.figures.charts import Bars
from hypermask_fast.figures.inside import Inside
from hypermask_fast.figures.labels import shortened

WHOLE = "whole network"


def capacity(found: Inside) -> Bars | None:
    """Return the figure of the entries that tasks keep, in percent of each tensor's.

    Returns:
        None where tasks have no masks.
    """
    if not found.binary:
        return None

    def with_whole(values: np.ndarray) -> np.ndarray:
        return 100.0 * np.append(values, values.sum()) / np.append(found.sizes, found.sizes.sum())

    series = {"any task": with_whole(found.by_any), "a task (mean)": with_whole(found.kept.mean(1))}
    if len(found.tasks) > 1:
        series["all tasks"] = with_whole(found.by_all)
    names = [*found.layers, WHOLE]
    return Bars(
        name="capacity",
        title="Capacity used, by layer",
        note="The share of a tensor's entries that masks keep."
        + (f" One entry in {found.every} was looked at." if found.every > 1 else ""),
        groups=names,
        labels=shortened(names, 24),
        series=series,
        group_title="tensor",
        value_title="entries kept (%)",
        high=100.0,
    )
