"""The wall time of runs of several seeds, over all of their parts."""

from __future__ import annotations

import json
import math
from pathlib import Path

from hypermask_fast.files.atomic import write_text_atomic

_FILE = "times.json"


def add(path: Path, seed: int, seconds: float) -> None:
    """Add the time of a part of a run.

    Args:
        path: The folder of the runs.
        seed: Of the run.
        seconds: That the part took. One that was killed with all that watched it is not counted.

    Raises:
        ConfigError: The file cannot be written.
    """
    found = _read(path)
    found[str(seed)] = round(found.get(str(seed), 0.0) + seconds, 3)
    write_text_atomic(path / _FILE, json.dumps({"wall_s": found}, indent=1) + "\n")


def of(path: Path, seed: int) -> float:
    """Return the seconds that a run took; NaN where nothing tells."""
    return _read(path).get(str(seed), math.nan)


def _read(path: Path) -> dict[str, float]:
    try:
        found = json.loads((path / _FILE).read_bytes())["wall_s"]
        return {str(seed): float(value) for seed, value in found.items()}
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return {}
