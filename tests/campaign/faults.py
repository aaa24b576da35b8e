"""Each operation on the files of a run fails in turn: a sentence, status 2, and a resume."""

from __future__ import annotations

import errno
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hypermask_fast.files.atomic import TEMPORARY
from tests.campaign.processes import Ended, Operation, Processes, Run
from tests.campaign.undisturbed import Undisturbed, copy_half

_FULL, _BROKEN = ("fail", errno.ENOSPC), ("fail", errno.EIO)
_STAYS_FULL = ("fail from here", errno.ENOSPC)
_SHORT = ("write short", 0)
_ERRORS = {
    "write": (_FULL, _SHORT, _BROKEN, _STAYS_FULL),
    "open": (_BROKEN, _FULL, _STAYS_FULL),
    "fsync": (_STAYS_FULL, _BROKEN, _FULL),
    "rename": (_FULL, _BROKEN, _STAYS_FULL),
    "mkdir": (_BROKEN, _STAYS_FULL, _FULL),
    "truncate": (_FULL, _BROKEN, _STAYS_FULL),
    "remove": (_BROKEN,),
}
KINDS = frozenset(_ERRORS)
_SENTENCE = re.compile(r"hypermask: (?!warning: )")
_NOT_REMOVED = "hypermask: warning: cannot remove the old checkpoint "
_PROGRESS = re.compile(r"learned |task \d+/\d+ |[^:]+( \.\.\.|: [\d.]+ s)$")  # and stages


class Fault(NamedTuple):
    """A command, the operation of it that fails, and how."""

    command: str
    operation: Operation
    action: str
    error: int

    @property
    def name(self) -> str:
        """How it fails, for the table of faults."""
        if self.action == "write short":
            return "short write"
        stays = " from then on" if self.action == "fail from here" else ""
        return errno.errorcode[self.error] + stays


def faults(whole: Undisturbed, count: int, seed: int) -> list[Fault]:
    """Return ``count`` faults, of all operations alike, each with one error after the other.

    The seed chooses which error comes first.

    Fewer where each operation has failed with each error.
    """
    operations = [
        (command, o)
        for command, trace in (("train", whole.trace), ("resume", whole.resume_trace))
        for o in trace
        if o.kind in _ERRORS
    ]
    made: list[Fault] = []
    for turn in range(max(map(len, _ERRORS.values()))):
        able = [(c, o) for c, o in operations if turn < len(_ERRORS[o.kind])]
        wanted = min(len(able), count - len(made))
        for i in range(wanted):
            command, operation = able[i * len(able) // wanted]
            errors = _ERRORS[operation.kind]
            error = errors[(operation.number + turn + seed) % len(errors)]
            made.append(Fault(command, operation, *error))
    return made


def _removes(operation: Operation) -> bool:
    """Return whether an old checkpoint was being removed: it is renamed first."""
    renames = operation.kind == "rename" and f"/{TEMPORARY}" not in operation.path
    return operation.kind == "remove" or renames


def wrong_end(fault: Fault, ended: Ended) -> str:
    """Return what is wrong with how a command ended after a fault, or ""."""
    lines = [line for line in ended.errors.splitlines() if not _PROGRESS.match(line)]
    if ended.hit is None:
        return "the operation did not come"
    if _removes(fault.operation):
        lines = [line for line in lines if not line.startswith(_NOT_REMOVED)]
    may_go_on = fault.action == "write short" or _removes(fault.operation)
    if ended.status == 0 and may_go_on and not lines:
        return ""
    if ended.status == 2 and len(lines) == 1 and _SENTENCE.match(lines[0]):
        return ""
    return f"ended with status {ended.status} and {lines}"


def fail(processes: Processes, run: Run, whole: Undisturbed, fault: Fault, folder: Path) -> str:
    """Run a command with a fault in ``folder``, and on from there; return what is wrong, or ""."""
    if fault.command == "resume":
        copy_half(whole.half, folder)
    job = run.next(folder)
    at, kind, *_ = fault.operation
    ended = processes.forked(replace(job, at=at, action=fault.action, error=fault.error))
    if ended.hit is not None and ended.hit.kind != kind:
        return f"hit {ended.hit}"
    wrong = wrong_end(fault, ended)
    if wrong:
        return wrong
    again = processes.forked(run.next(folder))
    lines = [line for line in again.errors.splitlines() if not _PROGRESS.match(line)]
    if again.status != 0 or lines:
        return f"cannot be continued, status {again.status} and {lines}"
    # What could not be removed may stay, after a warning.
    return whole.difference(folder, files=not _removes(fault.operation))
