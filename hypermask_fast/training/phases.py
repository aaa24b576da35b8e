"""The phases of a task's steps, as its method lays them out."""

from __future__ import annotations

from itertools import accumulate

from hypermask_fast.errors import ConfigError
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.protocol import Phase


def phases_of(learner: Learner, task: int, total: int) -> list[tuple[Phase, int]]:
    """Return the phases of a task, each with the step that it begins with.

    Args:
        learner: The learner.
        task: A task that was added.
        total: Steps of all phases together.

    Raises:
        ConfigError: Phases have no name of their own, or do not make up the steps.
    """
    phases = learner.phases(task, total)
    names = [phase.name for phase in phases]
    if len(set(names)) < max(1, len(names)):
        raise ConfigError(
            f"the phases of {type(learner).__name__} are called {names}; give at least one, and "
            "each a name of its own"
        )
    ends = list(accumulate(phase.steps for phase in phases))
    if ends[-1:] != [total]:
        raise ConfigError(
            f"the phases {list(phases)} of {type(learner).__name__} do not make up the task's "
            f"{total} steps; give as many"
        )
    return [(phase, end - phase.steps) for phase, end in zip(phases, ends, strict=True)]
