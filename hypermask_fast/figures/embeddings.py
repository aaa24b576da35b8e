"""Where the embeddings of the tasks are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hypermask_fast.figures.charts import Array, Points
from hypermask_fast.figures.labels import shortened


def principal(table: Array) -> tuple[Array, Array]:
    """Return coordinates along the two principal axes (rows, 2), and the axes' shares (2,).

    The largest entry of each axis is positive.
    """
    centered = table - table.mean(0)
    _, sizes, axes = np.linalg.svd(centered, full_matrices=False)
    sizes, axes = np.append(sizes, [0.0, 0.0])[:2], axes[:2]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    places = np.zeros((len(table), 2))
    places[:, : len(axes)] = centered @ axes.T
    total = float(np.square(centered).sum())
    return places, np.square(sizes) / total if total else np.zeros(2)


def embedding_map(table: Array, tasks: Sequence[str]) -> Points:
    """Return the figure of embeddings (tasks, dimensions) along their principal axes."""
    places, shares = principal(table)
    return Points(
        name="embeddings",
        title="Task embeddings",
        note=f"Along the two principal axes of {table.shape[1]} dimensions.",
        names=tasks,
        labels=shortened(tasks),
        x=places[:, 0],
        y=places[:, 1],
        x_title=f"first axis ({100 * shares[0]:.0f} % of the variance)",
        y_title=f"second axis ({100 * shares[1]:.0f} %)",
    )
