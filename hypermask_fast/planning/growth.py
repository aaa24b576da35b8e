"""What a run's learner takes and trains, counted on the meta device from its settings alone."""

from __future__ import annotations

import torch
from torch import Tensor

from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.planning.simulation import ScenarioSize
from hypermask_fast.planning.sizes import scenario_size
from hypermask_fast.settings.build import make_learner
from hypermask_fast.settings.config import RunConfig


def _learner(config: RunConfig, size: ScenarioSize, tasks: int) -> Learner:
    """Return a learner of a number of tasks, the last of which is not learned, and their rows."""
    rows = {"capacity": tasks} if "capacity" in config.options() else {}
    with torch.device("meta"):
        learner = make_learner(config.replace(tasks=tasks, **rows), size.input_shape, size.classes)
    for task in range(tasks):
        learner.add_task(str(task), range(size.classes))
    tensors, state = learner.task_state()
    learner.load_task_state(tensors, {**state, **learner.learned_state(range(tasks - 1))})
    return learner


def bytes_a_task(config: RunConfig) -> int:
    """Return what one more task than the run has would add to its learner, in bytes.

    That is by how much the tensors of its ``state_dict`` grow, which a checkpoint between two tasks
    holds, where tables have a row for each task and none to spare: embeddings, boxes, packed masks,
    statistics of norms, weights of frozen tasks, and outputs where tasks have outputs of their own.
    Not what only the learning of a task needs: moments of optimizers, and outputs kept to protect
    earlier tasks.

    Args:
        config: The settings.

    Raises:
        ConfigError: A setting does not fit.
    """
    size = scenario_size(config)
    before, after = (
        sum(tensor.nbytes for tensor in weights_of(_learner(config, size, tasks)).values())
        for tasks in (size.tasks, size.tasks + 1)
    )
    return after - before


def trained_parameters(config: RunConfig) -> int:
    """Return how many numbers the optimizers of the last task hold, those of all phases together.

    Tables have a row for each task of the run.

    Args:
        config: The settings.

    Raises:
        ConfigError: A setting does not fit.
    """
    size, steps = scenario_size(config), config.training.steps or 1000
    learner, last = _learner(config, size, size.tasks), size.tasks - 1
    with evaluating(learner):
        learner(torch.empty(2, *size.input_shape, dtype=size.dtype, device="meta"), last)
    learner.begin_task(last, steps=steps)
    held: dict[int, Tensor] = {}
    for phase in learner.phases(last, steps):
        if learner.phase != phase.name:
            learner.begin_phase(phase.name)
        for group in learner.parameter_groups(phase.name):
            held |= {id(p): p for p in group.params}
    return sum(p.numel() for p in held.values())
