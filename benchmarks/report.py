"""The markdown tables of recorded rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.harness.correctness import is_correct
from benchmarks.kernels.catalogue import find_kernel_cases
from benchmarks.steps.catalogue import find_cases

_COLUMNS = (
    "case",
    "variant",
    "device",
    "step, ms (p20 to p80)",
    "speed-up",
    "error",
    "peak, MiB",
    "time over floor",
)
_KERNEL_COLUMNS = (
    "case",
    "variant",
    "device",
    "ms (p20 to p80)",
    "GB/s",
    "time over floor",
    "speed-up",
    "error",
    "peak, MiB",
)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _speed_up(row: dict[str, Any], published: dict[str, Any] | None) -> str:
    if row.get("ratio") is None:
        return "-"
    return f"{row['ratio']:.1f}" if is_correct(row, published) else "none: wrong"


def _device(row: dict[str, Any]) -> str:
    machine = row["machine"]
    threads = machine["threads"]
    cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    if row.get("clock") == "processor":
        cpu += ", processor time"
    return str(machine["gpu"]).removeprefix("NVIDIA ") if "gpu" in machine else cpu


def _names(row: dict[str, Any]) -> list[str]:
    """Return the cells of case, variant and device; the variant with what of it did not work."""
    lacks = [f"{k}: {v}" for k, v in (row.get("status") or {}).items() if v != "yes"]
    return [row["case"], ", ".join([row["variant"], *lacks]), _device(row)]


def _failed(row: dict[str, Any]) -> str:
    reason = row["failed"].replace("|", "/")
    return f"| {' | '.join([*_names(row), f'failed: {reason}'])} |"


def _line(row: dict[str, Any], published: dict[str, Any] | None) -> str:
    if "failed" in row:
        return _failed(row) + " - |" * 4
    cells = [
        *_names(row),
        f"{row['median_ms']:.3g} ({row['p20_ms']:.3g} to {row['p80_ms']:.3g})",
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


def _step_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    published = {row["case"]: row for row in rows if row["variant"] == "published"}
    lines = [
        f"| {' | '.join(_COLUMNS)} |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [_line(row, published.get(row["case"])) for row in rows]
    legend = (
        "Medians of steps taken in turn with the published algorithm's; error: the largest "
        "relative error of losses, gradients and updates in one step from a recorded state, "
        "against float64; peak: memory over that after imports; time over floor: over that of "
        "copying the bytes an exact step has to move."
    )
    if any(row.get("error_size", row["size"]) != row["size"] for row in rows):
        legend += " *: error at a reduced size, because float64 does not fit in memory."
    return [*lines, "", legend, ""]


def _kernel_line(row: dict[str, Any], eager: dict[str, Any] | None) -> str:
    if "failed" in row:
        return _failed(row) + " - |" * 5
    speed = _speed_up(row, eager)
    if speed not in ("-", "none: wrong"):
        speed += f" ({row['alternative']})"
    way = "" if row["way"] == "graph" else f", {row['way']}"
    spread = f"{row['median_ms']:.3g} ({row['p20_ms']:.3g} to {row['p80_ms']:.3g}{way})"
    numbers = (("gb_s", ",.0f"), ("bytes_over_floor", ".2f"))
    cells = [*_names(row), spread, *(_cell(row.get(key), form) for key, form in numbers), speed]
    cells += [_cell(row.get("max_error"), ".1e"), _cell(row.get("peak_mib"), ",.0f")]
    return f"| {' | '.join(cells)} |"


def _kernel_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    eager = {row["case"]: row for row in rows if row["variant"] == "eager"}
    return [
        f"| {' | '.join(_KERNEL_COLUMNS)} |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_kernel_line(row, eager.get(row["case"])) for row in rows),
        "",
        (
            "Kernels by themselves: medians of launches in CUDA graphs (or between events, or by "
            "the host's clock, where it says so) whose inputs come from memory; GB/s: bytes that "
            "have to be moved, each once, over the time; time over floor: over that of copying "
            "them; speed-up: over the fastest right alternative, in brackets; error: against "
            "float64, relative."
        ),
        "",
    ]


def _shortened(names: Sequence[str], known: Sequence[str]) -> str:
    """Return names in a line; where all of a kind are there, they are told as one pattern."""
    kinds: dict[str, list[str]] = {}
    for name in known:
        kinds.setdefault("-".join(name.split("-")[:2]), []).append(name)
    parts = []
    for kind, each in kinds.items():
        there = [name for name in each if name in names]
        whole = len(there) == len(each) > 3
        parts += [f"{kind}-* ({len(each)})"] if whole else there
    return ", ".join(parts)


def _not_measured(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return lines of the suites' cases without a row, by the reason."""
    lines = []
    asked = dict.fromkeys((row["suite"], row["size"]) for row in rows)
    if ("cpu", "full") in asked:
        # A reader of its rows is to learn that there are others.
        asked["gpu", "full"] = None
    for suite, size in asked:
        known = [case.name for case in find_cases(suite, None, size)]
        known += [c.name for c in find_kernel_cases(None, size)] if suite == "gpu" else []
        some = [row for row in rows if (row["suite"], row["size"]) == (suite, size)]
        shown = {row["case"] for row in some if "skipped" not in row}
        reasons = {row["case"]: row["skipped"] for row in some if "skipped" in row}
        kinds: dict[str, list[str]] = {}
        for name in known:
            if name not in shown:
                kinds.setdefault(reasons.get(name, "not run"), []).append(name)
        lines += [
            f"Cases of the {suite} suite that were not measured ({reason}): "
            f"{_shortened(names, known)}."
            for reason, names in kinds.items()
        ]
    return [*lines, ""] if lines else []


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Return markdown tables with their legends, of steps and of kernels, and what is not in them.

    A row whose error is more than twice that of "published" in the same case, or of "eager" among
    kernels, prints no speed-up.

    Args:
        rows: As :func:`benchmarks.steps.runner.run_steps` and
            :meth:`benchmarks.kernels.runner.KernelBench.run_case` make them, with machine, versions
            and commit; or of a case that was not measured, with the reason as ``skipped``.
    """
    everything, rows = rows, [row for row in rows if "skipped" not in row]
    steps = [row for row in rows if row.get("kind") != "kernel"]
    kernels = [row for row in rows if row.get("kind") == "kernel"]
    lines = _step_table(steps) if steps or not kernels else []
    lines += _kernel_table(kernels) if kernels else []
    lines += _not_measured(everything)
    machines = dict.fromkeys(_machine(row) for row in everything)
    return "\n".join([*lines, *machines])
