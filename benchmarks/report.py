"""The markdown table of recorded rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_ERROR_FACTOR = 2.0
_COLUMNS = (
    "case",
    "variant",
    "step, ms (p20 to p80)",
    "speed-up",
    "error",
    "peak, MiB",
    "time over floor",
)


def is_correct(row: dict[str, Any], published: dict[str, Any] | None) -> bool:
    """Return whether a row's error is known, and at most twice that of the published algorithm."""
    error = row.get("max_error")
    if error is None or published is None or published.get("max_error") is None:
        return False
    return bool(error <= _ERROR_FACTOR * published["max_error"])


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _speed_up(row: dict[str, Any], published: dict[str, Any] | None) -> str:
    if row.get("ratio") is None:
        return "-"
    return f"{row['ratio']:.1f}" if is_correct(row, published) else "none: wrong"


def _line(row: dict[str, Any], published: dict[str, Any] | None) -> str:
    if "failed" in row:
        cells = [row["case"], row["variant"], f"failed: {row['failed']}", *["-"] * 4]
    else:
        spread = f"{row['median_ms']:.3g} ({row['p20_ms']:.3g} to {row['p80_ms']:.3g})"
        cells = [
            row["case"],
            row["variant"],
            spread,
            _speed_up(row, published),
            _cell(row.get("max_error"), ".1e") + ("*" if row["error_size"] != row["size"] else ""),
            _cell(row.get("peak_mib"), ",.0f"),
            _cell(row.get("bytes_over_floor"), ".1f"),
        ]
    return f"| {' | '.join(cells)} |"


def _machine(row: dict[str, Any]) -> str:
    machine, versions = row["machine"], row["versions"]
    parts = [
        *([machine["gpu"]] if "gpu" in machine else []),
        f"{machine['cpu']}, {machine['threads']} threads of {machine['cores']} cores",
        *(f"{name} {version}" for name, version in versions.items()),
        *([f"commit {row['commit']}"] if row["commit"] else []),
    ]
    return "; ".join(parts)


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Return a markdown table with its legend.

    A row whose error is more than twice that of "published" in the same case prints no speed-up.

    Args:
        rows: As :func:`benchmarks.runner.run_case` makes them, with machine, versions and commit.
    """
    published = {row["case"]: row for row in rows if row["variant"] == "published"}
    lines = [f"| {' | '.join(_COLUMNS)} |", "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    lines += [_line(row, published.get(row["case"])) for row in rows]
    legend = (
        "Medians of steps taken in turn with the published algorithm's; error: the largest "
        "relative error of losses, gradients and updates in one step from a recorded state, "
        "against float64; peak: memory over that after imports; time over floor: over that of "
        "copying the bytes an exact step has to move."
    )
    if any(row.get("error_size", row["size"]) != row["size"] for row in rows):
        legend += " *: error at a reduced size, because float64 does not fit in memory."
    machines = dict.fromkeys(_machine(row) for row in rows)
    return "\n".join([*lines, "", legend, "", *machines])
