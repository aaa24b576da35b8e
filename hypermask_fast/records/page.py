"""The report of a run: its records as a page, in words and figures."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hypermask_fast.console.words import duration, percent, size
from hypermask_fast.errors import HypermaskError
from hypermask_fast.figures import accuracy, by_class, losses
from hypermask_fast.figures.charts import Chart
from hypermask_fast.figures.page import Expected, Report, Setting, page
from hypermask_fast.files.atomic import write_text_atomic
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.metrics import continual
from hypermask_fast.records.accuracy_files import format_changes
from hypermask_fast.records.records import Records, records
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.expected import expected_of
from hypermask_fast.settings.options import options_of

_TITLES = {
    "acc_final": "ACC: mean accuracy at the end",
    "bwt_gem": "BWT: backward transfer",
    "forgetting_max": "forgetting",
}


def recorded_charts(found: Records) -> list[Chart]:
    """Return the figures of a run that its records alone give."""
    charts: list[Chart] = [
        accuracy.matrix_of(found.accuracy, found.names),
        accuracy.curves(found.accuracy, found.names),
    ]
    if found.rows:
        charts.append(losses.losses(found.rows))
    if found.confusions:
        tasks = [by_class.Counts(each.name, each.classes, each.counts) for each in found.confusions]
        confused = by_class.confusions(tasks)
        charts += [by_class.by_class(tasks), *([] if confused is None else [confused])]
    return charts


def run_page(found: Records, more: Sequence[Chart] = (), notes: Sequence[str] = ()) -> str:
    """Return the report of a run as HTML.

    Args:
        found: Its records.
        more: Figures beside those of the records.
        notes: What was left out.
    """
    config, values = found.config, found.metrics
    learned = int(found.summary.get("tasks_learned", continual.learned(found.accuracy)[1]))
    if config is None:
        parts = [str(found.options.get("class")), "run of a script"]
    else:
        parts = [config.method_name, config.scenario.name, config.network.name]
        parts += [f"preset {config.preset}"] if config.preset else []
    seed = found.options.get("seed")
    parts += [f"seed {seed}", f"{learned} of {len(found.names)} tasks learned"]
    changes = found.manifest.get("changes") or []
    report = Report(
        title=found.path.resolve().name,
        subtitle=" · ".join(parts),
        tiles=_tiles(found, values),
        notes=[*notes, *format_changes(changes)],
        expected=_expected(config, values, learned == len(found.names)),
        tasks=_task_rows(found),
        metrics=[(name, percent(values[name]), text) for name, text in _definitions(values)],
        charts=[*recorded_charts(found), *more],
        settings=_script_settings(found.script) if config is None else _settings(config),
        machine=_machine(found),
        command=shlex.join(found.manifest.get("machine", {}).get("command", [])),
        made_by=f"hypermask_fast {_version(found)}",
    )
    return page(report)


def write_page(path: Path, config: RunConfig | None = None) -> None:
    """Write ``report.html`` of a run from its records, in its folder.

    Args:
        path: The folder.
        config: Its settings. Default: they are read.
    """
    write_text_atomic(RunFolder(path).report_path, run_page(records(path, config)))


def _version(found: Records) -> str:
    return str(found.manifest.get("environment", {}).get("hypermask_fast", ""))


def _definitions(values: dict[str, float]) -> list[tuple[str, str]]:
    return [(name, text) for name, text in continual.definitions().items() if name in values]


def _tiles(found: Records, values: dict[str, float]) -> list[tuple[str, str]]:
    tiles = [("ACC, at the end", f"{percent(values['acc_final'])} %")]
    tiles.append(("backward transfer", f"{percent(values['bwt_gem'])} %"))
    tiles.append(("forgetting", f"{percent(values['forgetting_max'])} %"))
    if "seconds" in found.summary:
        tiles.append(("wall time", duration(found.summary["seconds"])))
    rate = found.summary.get("steps_per_second")
    if rate:
        tiles.append(("steps a second", f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"))
    for kind, count in found.summary.get("peak_bytes", {}).items():
        tiles.append((f"most {kind} memory", size(count)))
    return tiles


def _expected(config: RunConfig | None, values: dict[str, float], ended: bool) -> list[Expected]:
    """Return what the run's preset is known to reach, where that is recorded."""
    if config is None:
        return []
    try:
        known, others = expected_of(config)
    except HypermaskError:
        return []
    if known is None:
        return []
    found, holds, source = values["acc_final"], None, known.source
    room = known.tolerance(1)
    if others:
        source += f"; not of these settings: {', '.join(others)}"
    elif ended and room is not None:
        holds = bool(found >= known.acc - room)
    spread = "" if known.std is None else f" ± {known.std:.2f}"
    text = f"{known.acc:.2f}{spread} ({known.seeds} seed{'s' if known.seeds != 1 else ''})"
    return [Expected(_TITLES["acc_final"], text, f"{found:.2f}", holds, source)]


def _task_rows(found: Records) -> list[Sequence[str]]:
    """Return a row for each learned task: accuracies untrained, when learned, at the end."""
    matrix, t = continual.learned(found.accuracy)
    counts = found.summary.get("test_examples") or [None] * len(found.names)
    rows: list[Sequence[str]] = [
        ("", "task", "test examples", "untrained", "when learned", "at the end", "change")
    ]
    for j in range(t):
        first, last = float(matrix[j + 1, j]), float(matrix[t, j])
        change = "-" if math.isnan(last - first) else f"{round(last - first, 2) + 0.0:+.2f}"
        before = percent(float(matrix[0, j]))
        count = "-" if counts[j] is None else f"{counts[j]:,}"
        row = (str(j + 1), found.names[j], count, before, percent(first), percent(last), change)
        rows.append(row)
    if t > 1:
        means = [
            percent(float(np.mean(values)))
            for values in (matrix[0, :t], np.diagonal(matrix[1:])[:t], matrix[t, :t])
        ]
        rows.append(("", "mean", "", *means, ""))
    return rows


def _settings(config: RunConfig) -> list[Setting]:
    """Return all settings, with the preset's or the default where that is another one."""
    values = config.options()
    base = RunConfig.from_preset(config.preset).options() if config.preset else {}
    found = []
    for name, option in options_of(config.method_name, config.tables()["network"]["name"]).items():
        value, before = (_text(each) for each in (values[name], base.get(name, option.default)))
        key = option.key if option.table else name
        changed = before if option.table and value != before else None
        found.append(Setting(option.table, key, value or "none", changed))
    return found


def _script_settings(script: Mapping[str, Mapping[str, Any]]) -> list[Setting]:
    """Return the settings of a script's run, by part."""
    return [
        Setting(part, name, _text(value), None)
        for part, values in script.items()
        for name, value in values.items()
    ]


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return str(value)


def _machine(found: Records) -> list[tuple[str, str]]:
    machine = found.manifest.get("machine", {})
    environment = found.manifest.get("environment", {})
    rows = [(name, str(value)) for name, value in machine.get("versions", {}).items()]
    for name in ("host", "system", "processor", "processors", "threads", "gpu", "device"):
        if name in machine:
            rows.append((name, str(machine[name])))
    shown = {name for name, _ in rows}
    rows += [(k.replace("_", " "), _text(v)) for k, v in environment.items() if k not in shown]
    if "seconds" in found.summary:
        rows.append(("wall time", duration(found.summary["seconds"])))
        rows.append(("steps", f"{found.summary['steps']:,} of {found.summary['total_steps']:,}"))
    return rows
