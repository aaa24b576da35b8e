"""What a run ended with, and whether another one ended with the same, bit by bit."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_TIMING = ("seconds", "second", "time", "elapsed", "wall")
# Of the log, whose rows hold times.
_OF_LOG = ("metrics_position", "metrics_sha256")


def _untimed(value: Any) -> Any:
    """Leave out the fields of a record that tell a time."""
    if isinstance(value, dict):
        return {
            name: _untimed(entry)
            for name, entry in value.items()
            if name not in _OF_LOG and not any(word in name.split("_") for word in _TIMING)
        }
    return [_untimed(entry) for entry in value] if isinstance(value, list) else value


def _newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def outcome(run: Path) -> dict[str, Any]:
    """Return what must be the same: log, tables, settings, kept logits, the last checkpoint."""
    newest = _newest(run)
    found: dict[str, Any] = {
        "metrics.jsonl": [
            _untimed(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()
        ],
        "accuracy.csv": (run / "accuracy.csv").read_bytes(),
        "confusion.csv": (run / "confusion.csv").read_bytes(),
        "classes.csv": (run / "classes.csv").read_bytes(),
        "metrics": json.loads((run / "summary.json").read_bytes())["metrics"],
        "config.toml": (run / "config.toml").read_bytes(),
        "the newest checkpoint": newest.name,
        "tensors": (newest / "tensors.safetensors").read_bytes(),
        "state": _untimed(json.loads((newest / "state.json").read_bytes())),
        "learned": {path.name: path.read_bytes() for path in (run / "learned").iterdir()},
    }
    for file in ("accuracy.npz", "confusion.npz"):
        with np.load(run / file) as arrays:
            found[file] = {name: arrays[name].tobytes() for name in arrays.files}
    if not (run / "accuracy.svg").read_bytes().startswith(b"<svg"):
        found["accuracy.svg"] = "no picture"
    return found


def names(run: Path) -> set[str]:
    """Return the names of all files and folders of a run."""
    return {str(path.relative_to(run)) for path in run.rglob("*")}


def difference(run: Path, expected: dict[str, Any], expected_names: set[str] | None) -> str:
    """Return what differs from a run that nothing disturbed, or ""; its files too, if given."""
    try:
        found = outcome(run)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        return f"its results cannot be read ({error!r})"
    wrong = [part for part in expected.keys() | found if found.get(part) != expected.get(part)]
    if wrong:
        return f"{', '.join(sorted(wrong))} differ from the undisturbed run's"
    left = names(run) ^ (expected_names or names(run))
    return f"its files differ: {sorted(left)}" if left else ""
