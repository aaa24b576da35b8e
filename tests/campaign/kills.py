"""``kill -9`` at chosen operations of a run and of its resumes; at the end the run is compared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tests.campaign.processes import Ended, Operation, Processes, Run
from tests.campaign.undisturbed import Undisturbed

# Where runs are killed first, in turn.
_FIRST = (
    *("step", "checkpoint", "compile", "imports", "start"),
    *("log and results", "step", "checkpoint", "step", "checkpoint"),
    *("start", "step", "checkpoint", "imports", "log and results"),
    *("step", "checkpoint", "start", "step", "checkpoint"),
)
_KILLS_OF_A_RUN = (1, 2, 1, 3)
_SURE = 15  # operations that even the resume of a finished run has


class Case(NamedTuple):
    """A run that is killed: its number, how often, and where first."""

    number: int
    kills: int
    first: str


class Result(NamedTuple):
    """The phases that a run was killed in, and what is wrong with its end, or ""."""

    phases: list[str]
    wrong: str


def cases(count: int, *, compiles: bool) -> list[Case]:
    """Return runs that are killed ``count`` times together; not while compiling what none uses."""
    kinds = [first for first in _FIRST if compiles or first != "compile"]
    made: list[Case] = []
    while count > 0:
        number = len(made)
        kills = min(count, _KILLS_OF_A_RUN[number % len(_KILLS_OF_A_RUN)])
        made.append(Case(number, kills, kinds[number % len(kinds)]))
        count -= kills
    return made


def phase(operation: Operation, resumed: bool) -> str:
    """Return the part of a run that an operation belongs to."""
    kind, path, place = operation.kind, operation.path, operation.place
    if kind == "compile":
        return "compiling the native library"
    if kind == "read":
        return "imports, data, model"
    if place == "start-up" and resumed:
        return "start-up or end of a resume"
    where = place.partition(" phase ")[2]
    if kind == "mark":
        return f"a step of phase {where}"
    if place == "start-up":
        return "making the run's folder"
    if "checkpoints" in path:
        return f"a checkpoint in phase {where}" if where else "a checkpoint at a task's end"
    return "log and results"


def _numbers(trace: Sequence[Operation], kind: str) -> list[int]:
    """Return the operations of a kind of moment, before, at or after the first checkpoint."""
    first = next(o.number for o in trace if o.kind == "rename" and "checkpoints" in o.path)
    later = [o for o in trace if o.number > first]
    of_kind = {
        "start": [o for o in trace if o.number <= first],
        "step": [o for o in later if o.kind == "mark"],
        "checkpoint": [o for o in later if "checkpoints" in o.path],
        "log and results": [o for o in later if o.kind != "mark" and "checkpoints" not in o.path],
    }
    return [o.number for o in of_kind[kind]]


def _first(
    processes: Processes, run: Run, whole: Undisturbed, case: Case, folder: Path, rng: random.Random
) -> Ended:
    job = run.train(folder)
    if case.first == "imports":
        at = rng.randint(1, whole.reads)
        return processes.fresh(replace(job, at=at, action="kill", reads=True))
    if case.first == "compile":
        delay = rng.uniform(0, 0.9) * processes.compiling
        return processes.fresh(replace(job, compiling=delay), cache=folder / "cache")
    at = rng.choice(_numbers(whole.trace, case.first))
    action = rng.choice(("kill", "kill half-way"))
    return processes.forked(replace(job, at=at, action=action))


def _left_in_cache(cache: Path) -> list[str]:
    """Return what a kill left for ever beside the library and its lock."""
    left = sorted(path.name for path in cache.iterdir())
    libraries = [name for name in left if name.endswith(".so")]
    return [] if left == [".lock", *libraries] and len(libraries) == 1 else left


def kill(
    processes: Processes, run: Run, whole: Undisturbed, case: Case, seed: int, folder: Path
) -> Result:
    """Train in ``folder``, killed and resumed, and compare the end."""
    rng = random.Random(f"{seed} kills {case.number}")
    ended = _first(processes, run, whole, case, folder, rng)
    if not ended.was_killed or ended.hit is None:
        return Result([], f"was not killed at first, status {ended.status}: {ended.errors}")
    phases = [phase(ended.hit, resumed=False)]
    while len(phases) < case.kills:
        job = replace(run.next(folder), action=rng.choice(("kill", "kill half-way")))
        ended = processes.forked(replace(job, at=rng.randint(1, len(whole.resume_trace))))
        if ended.status == 0:  # it had less left to do
            ended = processes.forked(replace(job, at=rng.randint(1, _SURE)))
        if not ended.was_killed or ended.hit is None:
            return Result(phases, f"cannot be resumed, status {ended.status}: {ended.errors}")
        phases.append(phase(ended.hit, resumed=job.arguments[0] == "resume"))
    last = run.next(folder)
    compiles = case.first == "compile"
    ended = processes.fresh(last, folder / "cache") if compiles else processes.forked(last)
    if ended.status != 0 or "hypermask: " in ended.errors:
        return Result(phases, f"cannot be resumed, status {ended.status}: {ended.errors}")
    wrong = whole.difference(folder)
    if compiles and _left_in_cache(folder / "cache"):
        wrong = f"the cache holds {_left_in_cache(folder / 'cache')}"
    return Result(phases, wrong)
