"""The picture of a comparison: accuracies of methods and of their tasks, with intervals."""

from __future__ import annotations

import io
import math

import numpy as np

from hypermask_fast.figures.labels import shortened
from hypermask_fast.studies.comparison_result import Comparison

_MOST_NAMES = 20


def _escaped(text: str) -> str:
    return text.replace("$", r"\$")  # which would start a formula


def picture(found: Comparison) -> bytes:
    """Return a PNG: ACC of each method, and accuracy by task at the end; bars are 95 % intervals.

    Args:
        found: The comparison.
    """
    from matplotlib.figure import Figure

    methods, tasks = list(found.config.runs), found.task_names
    width = min(max(0.12 * len(tasks) * len(methods), 4.0), 14.0)
    sizes = [max(1.1 * len(methods), 2.5), width]
    figure = Figure(figsize=(sum(sizes) + 1.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=sizes)
    colors = [f"C{place % 10}" for place in range(len(methods))]

    for place, (method, color) in enumerate(zip(methods, colors, strict=True)):
        each = [run.values["acc"] for run in found.ended(method)]
        mean = found.figure(method, "acc")
        spread = np.linspace(-0.15, 0.15, len(each)) if len(each) > 1 else np.zeros(len(each))
        left.plot(place + spread, each, ".", color=color, alpha=0.4, markersize=5)
        error = None if math.isnan(mean.half) else mean.half
        left.errorbar(place, mean.mean, error, fmt="o", color=color, capsize=5)
    left.set_xticks(range(len(methods)), [_escaped(m) for m in methods], rotation=30, ha="right")
    left.set_xlim(-0.6, len(methods) - 0.4)
    left.set_ylabel("ACC: mean accuracy at the end (%)")
    left.set_xlabel("method; small: single seeds")

    offsets = (np.arange(len(methods)) - (len(methods) - 1) / 2) * 0.8 / len(methods)
    for method, color, offset in zip(methods, colors, offsets, strict=True):
        means = found.by_task(method)
        if means:
            halves = [0.0 if math.isnan(one.half) else one.half for one in means]
            places = np.arange(len(means)) + offset
            values = [one.mean for one in means]
            how = {"fmt": "o", "markersize": 4, "capsize": 3, "color": color}
            right.errorbar(places, values, halves, label=_escaped(method), **how)
    every = math.ceil(len(tasks) / _MOST_NAMES)
    names = [_escaped(name) for name in shortened(tasks)[::every]]
    right.set_xticks(range(0, len(tasks), every), names, rotation=45, ha="right")
    right.set_ylabel("accuracy at the end (%)")
    right.set_xlabel("task")
    handles, labels = right.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_escaped(found.title), fontsize=9)

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
