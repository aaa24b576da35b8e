"""Files of results, which are whole whenever a run ends."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def _finite(value: Any) -> Any:
    """Return what JSON can hold: None in place of infinities and NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(file: Path, value: Any, *, sort_keys: bool = False) -> None:
    """Replace a file, so that no one reads half of it; numbers that are not finite become null."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.write_text(json.dumps(_finite(value), indent=1, sort_keys=sort_keys) + "\n")
    beside.replace(file)
