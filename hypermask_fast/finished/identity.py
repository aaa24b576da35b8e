"""Whether two runs are the same bit by bit, and else where they part."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hypermask_fast.console.columns import aligned
from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.files import checkpoint
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.records.accuracy_files import read_accuracy
from hypermask_fast.records.environment import differences
from hypermask_fast.records.metrics_log import read, untimed
from hypermask_fast.records.restoring import settings_of
from hypermask_fast.settings.changes import FREE

PARTS = ("weights", "optimizer", "RNG", "metrics", "settings", "accuracy")
"""What is compared."""

_OF_PREFIX = {"learner": "weights", "best": "weights", "task": "weights", "rng": "RNG"}
_SHOWN = 8
# What a state says of the log, whose rows are compared, and of settings and environment.
_APART = ("metrics_position", "metrics_sha256", "settings", "script", "environment", "changes")


class TensorChange(NamedTuple):
    """A tensor that is not the same in two checkpoints.

    Attributes:
        name: Its name there.
        entries: How many entries differ; None where shapes or types do, or one run lacks it.
        largest: The largest absolute difference; NaN where there is none to tell.
        text: What differs, in words.
    """

    name: str
    entries: int | None
    largest: float
    text: str


@dataclass
class Identity:
    """What two runs do not have in common.

    Attributes:
        runs: Their folders.
        step: Of the checkpoints that were compared; None: the runs have none in common.
        differing: By part, what differs, in sentences; a part that is the same is not in it.
        first: The first row of the logs that differs: its place, and by field both values.
        tensors: That differ, the largest difference first.
        notes: What is not the same, and need not be.
    """

    runs: tuple[Path, Path]
    step: int | None = None
    differing: dict[str, list[str]] = field(default_factory=dict)
    first: dict[str, Any] | None = None
    tensors: list[TensorChange] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_same(self) -> bool:
        """Whether every bit is."""
        return not self.differing

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        tensors = [
            {**each._asdict(), "largest": None if math.isnan(each.largest) else each.largest}
            for each in self.tensors
        ]
        return {
            "runs": [str(run) for run in self.runs],
            "identical": self.is_same,
            "step": self.step,
            "differing": self.differing,
            "first_row": self.first,
            "tensors": tensors,
            "notes": self.notes,
        }

    def table(self) -> str:
        """Return the answer in lines."""
        if self.is_same:
            lines = [f"bitwise identical: {', '.join(PARTS)} (checkpoints of step {self.step})"]
        else:
            same = [part for part in PARTS if part not in self.differing]
            lines = [f"different: {', '.join(self.differing)}"]
            lines += [
                f"  {part}: {text}" for part, texts in self.differing.items() for text in texts
            ]
            if self.tensors:
                rows = [["  tensor", "entries that differ", "largest difference"]]
                for each in self.tensors[:_SHOWN]:
                    largest = "" if math.isnan(each.largest) else f"{each.largest:.3g}"
                    rows.append([f"  {each.name}", each.text, largest])
                lines += aligned(rows)
                left = len(self.tensors) - _SHOWN
                lines += [f"  and {left} more"] if left > 0 else []
            lines += [f"the same: {', '.join(same)}"] if same else []
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def differs(self, part: str, text: str) -> None:
        """Note that a part is not the same."""
        self.differing.setdefault(part, []).append(text)


def compare_runs(a: Path, b: Path) -> Identity:
    """Compare two runs, which are only read, whether they have ended or not.

    Weights, the optimizers' state and that of the random numbers are those of the newest
    checkpoints; where these are of different steps, of the newest step that both runs have. Times,
    the environment, and settings that no bit depends on may be others.

    Raises:
        ConfigError: A folder holds no run.
        CheckpointError: A checkpoint is damaged.
        DataError: A log cannot be read.
    """
    folders = _opened(a), _opened(b)
    found = Identity((Path(a), Path(b)))
    _settings(found, *folders)
    _rows(found, *folders)
    _checkpoints(found, *folders)
    _accuracies(found, *folders)
    found.differing = {part: found.differing[part] for part in PARTS if part in found.differing}
    return found


def _opened(path: Path) -> RunFolder:
    folder = RunFolder(path)
    return folder if folder.script_path.is_file() else RunFolder.open(path, lock=False)


def _settings(found: Identity, a: RunFolder, b: RunFolder) -> None:
    for name, (left, right) in differences(*map(_flat_settings, (a, b))).items():
        text = f"{name} is {left!r} in {a.path} and {right!r} in {b.path}"
        if name in FREE:
            found.notes.append(text)
        else:
            found.differs("settings", text)


def _flat_settings(folder: RunFolder) -> dict[str, Any]:
    if folder.config_path.is_file():
        return settings_of(folder).options()
    try:
        parts = json.loads(folder.script_path.read_bytes())
        return {name: value for part in parts.values() for name, value in part.items()}
    except (AttributeError, OSError, ValueError) as error:
        raise ConfigError(f"{folder.script_path} cannot be read ({error}); restore it") from error


def _place(row: Mapping[str, Any]) -> tuple[int, float]:
    """Return the place of a row in a run: its task and step; infinity of one after a task."""
    if "after_task" in row:
        return int(row["after_task"]), math.inf
    return int(row.get("task", -1)), float(row.get("step", -1))


def _words(place: tuple[int, float], row: Mapping[str, Any]) -> str:
    name = f" ({row['task_name']})" if "task_name" in row else ""
    if math.isinf(place[1]):
        return f"after task {place[0] + 1}{name}"
    return f"task {place[0] + 1}{name}, step {place[1]:.0f}"


def _rows(found: Identity, a: RunFolder, b: RunFolder) -> None:
    of_a, of_b = (
        {_place(row): untimed(row) for row in read(each.metrics_path)}
        if each.metrics_path.exists()
        else {}
        for each in (a, b)
    )
    common = sorted(of_a.keys() & of_b.keys())
    for place in common:
        if _text(of_a[place]) == _text(of_b[place]):
            continue
        changed = differences(of_a[place], of_b[place])
        values = ", ".join(f"{name} {x!r} and {y!r}" for name, (x, y) in changed.items())
        where = _words(place, of_a[place])
        found.differs("metrics", f"the logs part at {where}: {values}")
        found.first = {
            "task": place[0],
            "step": None if math.isinf(place[1]) else int(place[1]),
            "values": {name: list(pair) for name, pair in changed.items()},
        }
        break
    logs = (a, of_a, of_b), (b, of_b, of_a)
    for folder, own, others in logs:
        more = sorted(own.keys() - others.keys())
        if not more:
            continue
        text = f"{folder.path} has {len(more)} rows of its own, the first at " + _words(
            more[0], own[more[0]]
        )
        every = [_flat_settings(each).get("log_every") for each in (a, b)]
        if every[0] == every[1]:
            found.differs("metrics", text)
        else:
            found.notes.append(text)


def _text(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True)


def _checkpoints(found: Identity, a: RunFolder, b: RunFolder) -> None:
    saved = [checkpoint.by_step(each.checkpoints) for each in (a, b)]
    for each, of_one in zip((a, b), saved, strict=True):
        if not of_one:
            raise CheckpointError(f"{each.checkpoints} holds no checkpoint; continue the run first")
    newest = [max(of_one) for of_one in saved]
    if newest[0] != newest[1]:
        text = f"the newest checkpoints are of the steps {newest[0]} and {newest[1]}"
        found.differs("weights", text)
    common = saved[0].keys() & saved[1].keys()
    if not common:
        return
    found.step = max(common)
    left, right = (checkpoint.load(of_one[found.step]) for of_one in saved)
    changes = list(_changed_tensors(left.tensors, right.tensors))
    found.tensors = sorted(changes, key=lambda each: (-_size(each.largest), each.name))
    totals = Counter(map(_part_of, left.tensors.keys() | right.tensors.keys()))
    for part, count in Counter(_part_of(each.name) for each in found.tensors).items():
        found.differs(part, f"{count} of {totals[part]} tensors differ at step {found.step}")
    _states(found, left.state, right.state)


def _part_of(tensor: str) -> str:
    return _OF_PREFIX.get(tensor.partition("/")[0], "optimizer")


def _states(found: Identity, left: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    apart = differences(left.get("environment") or {}, right.get("environment") or {})
    found.notes += [f"{name} is {x!r} and {y!r}" for name, (x, y) in apart.items()]
    for name, (x, y) in differences(left, right).items():
        if name in _APART:
            continue
        if isinstance(x, dict) and isinstance(y, dict):
            names = ", ".join(differences(x, y))
        else:
            names = name
        part = "optimizer" if "optimizer" in names else "weights"
        found.differs(part, f"the state of the checkpoints differs in {names}")


def _size(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _changed_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Iterator[TensorChange]:
    nan = math.nan
    for name in dict.fromkeys((*a, *b)):
        if name not in a or name not in b:
            which = "second" if name in b else "first"
            yield TensorChange(name, None, nan, f"in the {which} run alone")
            continue
        x, y = a[name], b[name]
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            text = f"{x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}"
            yield TensorChange(name, None, nan, text)
        elif not torch.equal(_bytes(x), _bytes(y)):
            entries = int((_bytes(x) != _bytes(y)).view(x.numel(), -1).any(1).sum())
            largest = float((x.double() - y.double()).abs().max()) if not x.is_complex() else nan
            yield TensorChange(name, entries, largest, f"{entries:,} of {x.numel():,}")


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().flatten().view(torch.uint8)


def _accuracies(found: Identity, a: RunFolder, b: RunFolder) -> None:
    has = [each.accuracy_npz.exists() for each in (a, b)]
    if not any(has):
        return
    if not all(has):
        found.differs("accuracy", f"{(a, b)[has.index(False)].path} has none")
        return
    (x, names), (y, other_names) = (read_accuracy(each.accuracy_npz) for each in (a, b))
    if names != other_names:
        found.differs("accuracy", f"the tasks are {names} and {other_names}")
        return
    cells = np.argwhere(~((x == y) | (np.isnan(x) & np.isnan(y))))
    if len(cells):
        i, j = cells[0]
        when = f"after {names[i - 1]}" if i else "before training"
        found.differs(
            "accuracy",
            f"values that differ: {len(cells)}, the first that on {names[j]} {when}: "
            f"{x[i, j]:.4f} and {y[i, j]:.4f}",
        )
