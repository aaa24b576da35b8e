"""Figures of runs in files, each with its data, and a page that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hypermask_fast.console.words import duration, percent
from hypermask_fast.errors import ConfigError, HypermaskError
from hypermask_fast.figures import accuracy, losses
from hypermask_fast.figures.capacity import capacity
from hypermask_fast.figures.charts import Chart
from hypermask_fast.figures.draw import drawing
from hypermask_fast.figures.embeddings import embedding_map
from hypermask_fast.figures.inside import inside
from hypermask_fast.figures.labels import shortened, told_apart
from hypermask_fast.figures.overlap import overlap
from hypermask_fast.figures.page import Report, page
from hypermask_fast.files import checkpoint
from hypermask_fast.files.atomic import write_bytes_atomic, write_text_atomic
from hypermask_fast.files.fit import in_a_sentence
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.finished.record_groups import groups
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.planning.sizes import scenario_size
from hypermask_fast.records.page import recorded_charts, run_page
from hypermask_fast.records.records import Records
from hypermask_fast.records.restoring import changes_since, settings_of
from hypermask_fast.runs import run
from hypermask_fast.settings.build import make_learner
from hypermask_fast.settings.changes import FREE
from hypermask_fast.studies import seeds
from hypermask_fast.training.states import load_learner, parts_of

FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Plotted:
    """What was written.

    Attributes:
        folder: Of the figures.
        report: The page.
        files: The figures.
        notes: What was left out, and why.
    """

    folder: Path
    report: Path
    files: Sequence[Path]
    notes: Sequence[str]


def learner_of(path: Path) -> Learner:
    """Return the learner of a run's newest checkpoint, on the CPU; its data set need not be there.

    The data of a scenario of one's own are made, which alone tell the sizes.

    Raises:
        CheckpointError: There is no checkpoint, it is damaged, or settings were changed since.
        ConfigError, DataError: As in :func:`hypermask_fast.runs.run.load`.
    """
    folder = RunFolder.open(path, lock=False)
    config = settings_of(folder)
    if config.scenario.is_own:
        return run.load(path, device="cpu").learner
    changes_since(folder, config, allowed=False)
    saved = checkpoint.load_latest(folder.checkpoints)
    size = scenario_size(config)
    with torch.random.fork_rng(devices=()), in_a_sentence(folder.checkpoints):
        learner = make_learner(config, size.input_shape, size.classes)
        state = saved.state["trainer"]
        load_learner(learner, parts_of(learner, saved.tensors, state), state)
        with evaluating(learner):
            # Some find out in their first forward what they mask.
            learner(torch.zeros(2, *size.input_shape, dtype=size.dtype), task=0)
    return learner


def learner_charts(path: Path) -> tuple[list[Chart], list[str]]:
    """Return the figures that need a run's learner, and what was left out."""
    if not RunFolder(path).config_path.exists():
        left = "figures of masks and embeddings were left out"
        return [], [f"{left}: only the script that made the run has its network"]
    try:
        learner = learner_of(path)
        found = inside(learner)
    except HypermaskError as error:
        return [], [f"figures of masks and embeddings were left out: {error}"]
    method = type(learner).__name__
    if found is None:
        return [], [f"figures of masks were left out: tasks of {method} have none of their own"]
    charts: list[Chart] = [*overlap(found)]
    notes = []
    used = capacity(found)
    if used is None:
        notes.append(
            f"{method} has no binary masks: the overlap is of weights, and no capacity is shown"
        )
    else:
        charts.append(used)
    if found.embeddings is None:
        notes.append(f"no map of embeddings: {method} has none")
    else:
        charts.append(embedding_map(found.embeddings, found.tasks))
    return charts, notes


def plot(paths: Sequence[Path], out: Path | None = None, kind: str = "png") -> Plotted:
    """Write the figures of runs, each with its data as csv, and a page.

    Args:
        paths: Folders of runs, or of those of several seeds.
        out: Where to. Default: ``figures`` in the folder of the only path, whose page lies beside
            it.
        kind: "png", "svg" or "pdf".

    Raises:
        ConfigError: A folder holds no run, several are given without ``out``, or the kind is
            unknown.
        DataError: A run has learned no task yet, or a file is damaged.
    """
    if kind not in FORMATS:
        raise ConfigError(f"format={kind!r} is unknown; give one of {', '.join(FORMATS)}")
    paths = list(dict.fromkeys(Path(path) for path in paths))
    if out is None and len(paths) > 1:
        raise ConfigError(f"{len(paths)} runs are given; say where their figures go with --out")
    folder = paths[0] / "figures" if out is None else out
    report = (paths[0] if out is None else out) / RunFolder("").report_path.name
    found = groups(paths)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make {folder}: {error.strerror}; choose another --out"
        ) from error
    if len(found) == 1 and len(found[0]) == 1 and not seeds.holds_seeds(paths[0]):
        only = found[0][0]
        more, notes = learner_charts(only.path)
        files = write_charts(folder, [*recorded_charts(only), *more], kind)
        write_text_atomic(report, run_page(only, more, notes))
        return Plotted(folder, report, files, notes)
    charts = overlaid(found)
    files = write_charts(folder, charts, kind)
    notes = []
    names = _run_names([each.path for group in found for each in group])
    for each, name in zip((e for group in found for e in group), names, strict=True):
        more, left_out = learner_charts(each.path)
        own = folder / name
        own.mkdir(exist_ok=True)
        files += write_charts(own, [*recorded_charts(each), *more], kind)
        write_text_atomic(own / report.name, run_page(each, more, left_out))
        notes += [f"{each.path}: {note}" for note in left_out]
    write_text_atomic(report, page(_overview(found, charts, notes)))
    return Plotted(folder, report, files, notes)


def write_charts(folder: Path, charts: Sequence[Chart], kind: str) -> list[Path]:
    """Write figures and their data, and return the files of the figures."""
    files = []
    for chart in charts:
        path = folder / f"{chart.name}.{kind}"
        if kind == "svg":
            write_text_atomic(path, drawing(chart).markup(alone=True))
        else:
            from hypermask_fast.figures.paint import paint

            write_bytes_atomic(path, paint(chart, kind))
        write_text_atomic(folder / f"{chart.name}.csv", chart.csv_text())
        files.append(path)
    return files


def labels_of(found: Sequence[Sequence[Records]]) -> list[str]:
    """Return a label for each group: the settings by which they differ."""
    several = any(len(group) > 1 for group in found)
    aside = (*FREE, "seed") if several else FREE
    names = [_group_name(group) for group in found]
    return told_apart([group[0].options for group in found], names, aside)


def _group_name(group: Sequence[Records]) -> str:
    path = group[0].path.resolve()
    return path.parent.name if len(group) > 1 else path.name


def _run_names(paths: Sequence[Path]) -> list[str]:
    """Return names of folders for runs: those of their own, with their parents' where needed."""
    resolved = [path.resolve() for path in paths]
    names = [path.name for path in resolved]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}-{path.name}" for path in resolved]
    if len(set(names)) < len(names):
        names = [f"{place + 1}-{name}" for place, name in enumerate(names)]
    return names


def overlaid(found: Sequence[Sequence[Records]]) -> list[Chart]:
    """Return the figures in which several runs, or seeds, stand together."""
    labels = labels_of(found)
    pairs = list(zip(labels, found, strict=True))
    matrices = {label: [each.accuracy for each in group] for label, group in pairs}
    logs = {label: [e.rows for e in group if e.rows] for label, group in pairs}
    logs = {label: rows for label, rows in logs.items() if rows}
    charts: list[Chart] = [*accuracy.compared(matrices)]
    return [*charts, *([losses.compared(logs)] if logs else [])]


def _overview(
    found: Sequence[Sequence[Records]], charts: Sequence[Chart], notes: Sequence[str]
) -> Report:
    rows: list[Sequence[str]] = [("", "run", "seed", "ACC", "BWT", "forgetting", "wall time")]
    for label, group in zip(labels_of(found), found, strict=True):
        for each in group:
            values: dict[str, Any] = each.metrics
            shown = (values[name] for name in ("acc_final", "bwt_gem", "forgetting_max"))
            seconds = each.summary.get("seconds")
            time = "-" if seconds is None else duration(seconds)
            seed = str(each.options.get("seed"))
            rows.append((str(len(rows)), label, seed, *map(percent, shown), time))
    count = sum(map(len, found))
    return Report(
        title=f"{count} runs",
        subtitle=", ".join(shortened([_group_name(group) for group in found], 40)),
        notes=notes,
        tasks=rows,
        tasks_title="Runs",
        charts=charts,
    )
