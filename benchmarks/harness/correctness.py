"""When a measured row counts as right."""

from __future__ import annotations

from typing import Any

ERROR_FACTOR = 2.0
"""How much larger than the published, or eager, error a right one may be."""


def is_correct(row: dict[str, Any], plain: dict[str, Any] | None) -> bool:
    """Return whether a row's error is known, and at most twice that of the plain algorithm."""
    error = row.get("max_error")
    if error is None or plain is None or plain.get("max_error") is None:
        return False
    return bool(error <= ERROR_FACTOR * plain["max_error"])
