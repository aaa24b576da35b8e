"""A run that nothing disturbs: what the others must end with, and the operations to choose from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypermask_fast.files.atomic import TEMPORARY
from tests.campaign.outcome import difference, names, outcome
from tests.campaign.processes import Operation, Processes, Run, operations


@dataclass(frozen=True)
class Undisturbed:
    """What a run without kills and faults does and leaves.

    Attributes:
        outcome, names: Of its folder; see `tests.campaign.outcome`.
        trace: Operations of ``hypermask train`` in a forked process.
        reads: Files that a fresh process opens before it makes the folder of the run.
        uses_library: Whether it loads the native library.
        half: A run that was killed in the middle.
        resume_trace: Operations of ``hypermask resume`` of a copy of it.
    """

    outcome: dict[str, Any]
    names: set[str]
    trace: list[Operation]
    reads: int
    uses_library: bool
    half: Path
    resume_trace: list[Operation]

    def difference(self, folder: Path, *, files: bool = True) -> str:
        """Return what differs in the run in ``folder``, or ""; extra files too."""
        return difference(folder / "runs" / "a", self.outcome, self.names if files else None)


def unsynced(trace: Sequence[Operation]) -> list[str]:
    """Return what a power failure may find half under a name that is read.

    What is renamed must be on the disk before, and the folder of its new name before the next step.
    """
    dirty: set[str] = set()
    renamed: set[str] = set()
    wrong = []
    for o in trace:
        folder = o.path.rpartition("/")[0]
        if o.kind in ("open", "write", "truncate"):
            dirty |= {o.path, folder} if o.kind == "open" else {o.path}
        elif o.kind == "fsync":
            dirty.discard(o.path)
            renamed.discard(o.path)
        elif o.kind == "mark":
            wrong += [f"the names in {name} at operation {o.number}" for name in renamed]
            renamed.clear()
        elif o.kind == "rename" and f"/{TEMPORARY}" in o.path:
            wrong += [p for p in dirty if p == o.path or p.startswith(f"{o.path}/")]
            renamed.add(folder)
    return wrong + [f"the names in {name} at the end" for name in renamed]


def copy_half(half: Path, folder: Path) -> None:
    """Put the run that was killed in the middle into ``folder``."""
    shutil.copytree(half / "runs", folder / "runs")


def undisturbed(processes: Processes, run: Run, parent: Path) -> Undisturbed:
    """Train once in a fresh and once in a forked process, which must agree, and look at both."""
    fresh, forked, half, rest = (parent / name for name in ("fresh", "forked", "half", "rest"))
    for folder in (fresh, forked, half, rest):
        folder.mkdir()
    ended = processes.fresh(replace(run.train(fresh), traced=True, reads=True))
    assert ended.status == 0, ended.errors
    ended = processes.forked(replace(run.train(forked), traced=True))
    assert ended.status == 0, ended.errors

    whole = fresh / "runs" / "a"
    found = outcome(whole), names(whole)
    differs = difference(forked / "runs" / "a", *found)
    assert not differs, f"of a forked run: {differs}"
    trace, all_opened = operations(Path(f"{forked}.trace")), operations(Path(f"{fresh}.trace"))
    opened = " ".join(o.path for o in trace if o.kind == "open")
    unseen = [path for path in whole.rglob("*") if path.is_file() and path.name not in opened]
    assert not unseen, f"the shim saw nothing write {unseen}"
    uses_library = any("/passes-" in o.path for o in all_opened)
    assert not unsynced(trace), f"not on the disk when it must be: {unsynced(trace)}"
    reads = next(i for i, o in enumerate(all_opened) if o.kind == "mkdir")

    ended = processes.forked(replace(run.train(half), at=len(trace) // 2, action="kill"))
    assert ended.was_killed, ended
    copy_half(half, rest)
    ended = processes.forked(replace(run.next(rest), traced=True))
    assert ended.status == 0, ended.errors
    return Undisturbed(*found, trace, reads, uses_library, half, operations(Path(f"{rest}.trace")))
