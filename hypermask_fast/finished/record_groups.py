"""The records of several runs, of which those of several seeds are one group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hypermask_fast.errors import ConfigError
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.records.records import Records, records
from hypermask_fast.studies import seeds


def groups(paths: Sequence[Path]) -> list[list[Records]]:
    """Return the records of runs; those of a folder of several seeds are one group.

    Raises:
        ConfigError, DataError: As :func:`records`; of several seeds, where none has learned a task.
    """
    found = []
    for path in paths:
        if not seeds.holds_seeds(path):
            found.append([records(path)])
            continue
        begun = [each for each in seeds.folders(path) if RunFolder(each).accuracy_npz.exists()]
        if not begun:
            raise ConfigError(
                f"no run in {path} has learned a task yet; continue them with `hypermask resume "
                f"{path}`"
            )
        found.append([records(each) for each in begun])
    return found
