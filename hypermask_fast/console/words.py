"""Numbers in words: percentages, times, sizes."""

from __future__ import annotations

import math


def percent(value: float) -> str:
    """Return it with two places, never as -0.00; ``-`` where it is NaN."""
    return "-" if math.isnan(value) else f"{round(value, 2) + 0.0:.2f}"


def duration(seconds: float) -> str:
    """Return a time: ``1 h 02 min``, ``3 min 05 s``, ``7.9 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def size(count: int) -> str:
    """Return bytes in the largest unit of which there is one: ``1.5 GiB``, ``20.0 MiB``."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
