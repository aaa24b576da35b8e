"""The metrics of a run that was recorded, by the definitions of this package or of others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypermask_fast.errors import DataError
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.metrics import continual
from hypermask_fast.metrics.like import Named, formulas, like
from hypermask_fast.records import summary
from hypermask_fast.records.accuracy_files import read_accuracy


@dataclass(frozen=True)
class Metrics:
    """Metrics by name.

    Attributes:
        library: Whose names and units they have; None: those of this package, percent.
        values: The metrics; NaN where a value that one needs was not measured.
        definitions: By name; of a library, one text under its name.
        notes: What there is to say of them.
    """

    library: str | None
    values: Named
    definitions: Mapping[str, str]
    notes: Sequence[str]

    @property
    def digits(self) -> int:
        """After the point, to show them with: of percent 2, of fractions 4."""
        return 4 if self.library in ("avalanche", "gem") else 2

    def to_json(self) -> dict[str, Any]:
        """Return them as JSON values; NaN becomes None."""
        values = {name: _plain(value) for name, value in self.values.items()}
        return {"like": self.library, "metrics": values, "definitions": dict(self.definitions)}


def _plain(value: float | list[float]) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if math.isnan(value) else value


def metrics_of(path: Path, library: str | None = None) -> Metrics:
    """Return the metrics of a run.

    Args:
        path: Its folder, or an ``accuracy.npz``, whose tasks then count alike.
        library: Whose names and formulas; default: those of this package.

    Raises:
        ConfigError: The library is unknown, or there is no run.
        DataError: There is no accuracy matrix.
    """
    is_file = path.suffix == ".npz"
    file = path if is_file else RunFolder(path).accuracy_npz
    if not file.exists() and not is_file:
        RunFolder.of_any(path)  # which tells what is there
    matrix, _ = read_accuracy(file)
    counts = None if is_file else _counts(RunFolder(path))
    fits = counts is not None and len(counts) == matrix.shape[1]
    notes = [] if fits else ["test examples of the tasks are not recorded: tasks count alike"]
    if library is not None:
        values = like(library, matrix, counts if fits else None)
        return Metrics(library, values, {library: formulas(library)}, notes)
    own: Named = dict(continual.summary(matrix, counts if fits else None))
    texts = {name: text for name, text in continual.definitions().items() if name in own}
    return Metrics(None, own, texts, ["in percent; --json has the definitions"])


def _counts(folder: RunFolder) -> list[int] | None:
    try:
        counts = summary.read(folder.summary_path).get("test_examples")
    except DataError:  # a run of an earlier version
        return None
    return [int(count) for count in counts] if counts else None
