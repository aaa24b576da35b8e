"""Rows of figures of launches: ``python -m benchmarks static``, and what it recorded before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import triton

from benchmarks.launches.catalogue import launch_modules
from benchmarks.launches.launch import Launch
from benchmarks.static.compile import compile_launch, use_target
from benchmarks.static.figures import figures_of
from hypermask_fast.errors import ConfigError

RECORD = Path(__file__).parents[1] / "results" / "static.json"
_COMMAND = "python -m benchmarks static --json benchmarks/results/static.json"
_WORSE = 1.1
_LESS = ("registers", "spills", "shared", "code", "instructions", "barriers", "model_us")
_MORE = ("programs",)
"""Figures that are better when they are less, or more."""


def launches(rooms: Sequence[str] | None = None) -> dict[str, Launch]:
    """Return the launches by name.

    Args:
        rooms: Of ``benchmarks/launches``; None for all.
    """
    return {
        f"{stem}/{name}": launch
        for stem, module in launch_modules().items()
        for name, launch in module.LAUNCHES.items()
        if rooms is None or module.__name__.split(".")[-2] in rooms
    }


def collect(target: str, patterns: Sequence[str], every: bool) -> Iterator[dict[str, Any]]:
    """Yield the figures of each kernel of the launches: replayed ones where it is one of a head.

    Args:
        target: Of ``compile.TARGETS``.
        patterns: Of names of launches, as "step_rows/*", which are replayed; without any, all.
        every: All configurations; else the default.

    Raises:
        ConfigError: No launch has such a name, or Triton interprets.
    """
    if triton.knobs.runtime.interpret:
        raise ConfigError("TRITON_INTERPRET is set: kernels are not compiled; unset it")
    found = {
        name: launch
        for name, launch in launches().items()
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not found:
        raise ConfigError(
            f"--launch is {' '.join(patterns)}: no launch has such a name; "
            f"patterns are as mask_logits/* or */permuted-9"
        )
    # What passes over a head streams tensors; of other kernels little can be replayed.
    by_default = launches(["head"])
    use_target(target)
    for name, launch in sorted(found.items()):
        for config in launch.configs if every else launch.configs[:1]:
            for number, kernel in enumerate(compile_launch(launch, config)):
                row = {"launch": name, "number": number, "kernel": kernel.name}
                if every:
                    row["config"] = dict(config)
                replayed = name in by_default or bool(patterns)
                yield row | figures_of(kernel, target, replayed)


def write(rows: Sequence[Mapping[str, Any]], target: str, path: Path, *, every: bool) -> None:
    """Write rows, one in a line, in the order of their launches.

    Args:
        rows: Of :func:`collect`.
        target: Of the same.
        path: Of the file.
        every: They are all that there are; else the file keeps those of other launches, if they are
            of the same target and Triton.
    """
    if not every and path.exists():
        before = json.loads(path.read_text())
        if (before["target"], before["triton"]) == (target, triton.__version__):
            new = {row["launch"] for row in rows}
            rows = [*rows, *(row for row in before["rows"] if row["launch"] not in new)]
    # Configurations of a launch stay in their order.
    rows = sorted(rows, key=lambda row: str(row["launch"]))
    kept = ({key: value for key, value in row.items() if key != "waits"} for row in rows)
    lines = ",\n".join("  " + json.dumps(row) for row in kept)
    head = f'{{"target": {json.dumps(target)}, "triton": {json.dumps(triton.__version__)}'
    path.write_text(f'{head}, "rows": [\n{lines}\n]}}\n')


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["launch"], row["number"], row["kernel"]


def worse(
    rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any]
) -> tuple[list[str], str | None]:
    """Return what got worse by more than a tenth, a sentence each; and why rows do not compare.

    Args:
        rows: Of the default configurations, with all figures or some.
        record: What :func:`write` wrote.
    """
    if record["triton"] != triton.__version__:
        other = f"of Triton {record['triton']}, this is {triton.__version__}"
        return [], f"the recorded figures are {other}: they do not compare"
    recorded = {_key(row): row for row in record["rows"]}
    sentences = []
    for row in rows:
        before = recorded.get(_key(row), {})
        for name in (*_LESS, *_MORE):
            if name not in before or name not in row:
                continue
            old, new = before[name], row[name]
            if (new > _WORSE * old) if name in _LESS else (old > _WORSE * new):
                sentences.append(
                    f"{row['launch']} ({row['kernel']}): {name} is {new}, {old} when it was "
                    f"recorded; if that is meant, record anew: {_COMMAND} --launch {row['launch']}"
                )
    return sentences, None


def _cells(row: Mapping[str, Any]) -> list[str]:
    loads = " ".join(f"{count:g}x{size}" for size, count in row.get("loads", {}).items())
    sizes = [
        str(row.get(name, "-"))
        for name in ("registers", "spills", "shared", "programs", "code", "instructions")
    ]
    times = [f"{row[name]:.0f}" if name in row else "-" for name in ("copy_us", "model_us")]
    config = "".join(f" {name}={value}" for name, value in row.get("config", {}).items())
    name = f"{row['launch']} {row['kernel']}{config}"
    return [name, *sizes, loads or "-", str(row.get("barriers", "-")), *times]


_HEAD = (
    *("launch, kernel", "registers", "spills", "shared", "programs", "code"),
    *("instructions", "loads", "barriers", "copy us", "model us"),
)


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the markdown table of rows.

    Args:
        rows: Of :func:`collect`.
    """
    table = [list(_HEAD), ["---"] * len(_HEAD), *map(_cells, rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in table)


def run_static(
    target: str, patterns: Sequence[str], every: bool, path: Path | None, where: bool
) -> str:
    """Return the table of figures, and what is worse than recorded.

    Args:
        target, patterns, every: As of :func:`collect`.
        path: For the rows; None for none.
        where: Also the instructions that are most waited for.
    """
    rows = list(collect(target, patterns, every))
    text = render(rows)
    for row in rows if where else ():
        text += "\n\n" + "\n".join([f"{row['launch']} {row['kernel']}", *row.get("waits", ())])
    if path is not None:
        write(rows, target, path, every=not patterns)
    elif RECORD.exists() and not every:
        record = json.loads(RECORD.read_text())
        if record["target"] == target:
            sentences, reason = worse(rows, record)
            text = "\n".join([text, *sentences, *([reason] if reason else [])])
    return text
