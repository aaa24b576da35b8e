"""How many runs go at once on a machine, and what each of them gets of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from hypermask_fast.errors import ConfigError, PlanError
from hypermask_fast.fields import check_value
from hypermask_fast.planning.plan import device_kind, plan
from hypermask_fast.settings.config import RunConfig


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@dataclass(frozen=True)
class Share:
    """What each of several runs has.

    Attributes:
        jobs: Runs at once.
        threads: Of PyTorch, for each.
        memory: Bytes of the device for each; None: what is left.
    """

    jobs: int
    threads: int
    memory: int | None


def share(config: RunConfig, runs: int, jobs: int | None, memory: int | None) -> Share:
    """Return how many runs go at once, and the part of the machine that each has.

    Args:
        config: The settings of one of them.
        runs: How many there are.
        jobs: How many at once. None: on a CPU one for each core, as many as the plan says fit the
            memory; elsewhere one.
        memory: Bytes that the device has for all. Default: what it has left.

    Raises:
        ConfigError: ``jobs`` is out of range, or so many do not fit.
    """
    check_value("jobs", int, jobs, None, low=1)
    wanted = min(runs, jobs or cores())
    if jobs is None and device_kind(config) != "cpu":
        wanted = 1
    if wanted > 1:
        fitting, needed, memory = _fitting(config, memory)
        if fitting is not None and fitting < wanted:
            if jobs is not None:
                raise ConfigError(
                    f"jobs={jobs}: {wanted} runs at once need {wanted} x {needed / 2**20:,.1f} MiB "
                    f"and {(memory or 0) / 2**20:,.1f} MiB are available; give --jobs "
                    f"{max(1, fitting)}"
                )
            wanted = max(1, fitting)
        if memory is not None:
            memory //= wanted
    threads = torch.get_num_threads()
    if wanted > 1:
        threads = min(threads, max(1, cores() // wanted))
    return Share(wanted, threads, memory)


def _fitting(config: RunConfig, memory: int | None) -> tuple[int | None, int, int | None]:
    """Return how many runs fit, what one needs, and what there is, of which None is unknown."""
    try:
        planned = plan(config, memory=memory)
    except PlanError:
        return 1, 0, memory
    needed, available = planned.needed(resuming=True), planned.available
    return None if available is None else available // needed, needed, available
