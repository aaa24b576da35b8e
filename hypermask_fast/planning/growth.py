"""What a run's learner takes and trains, counted on the meta device from its settings alone."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.planning.simulation import ScenarioSize
from hypermask_fast.planning.sizes import scenario_size
from hypermask_fast.settings.build import make_learner, make_network
from hypermask_fast.settings.config import RunConfig


def _learner(config: RunConfig, size: ScenarioSize, tasks: int, learned: int) -> Learner:
    """Return a learner of a number of tasks, the first of which are learned, and their rows."""
    rows = {"capacity": tasks} if "capacity" in config.options() else {}
    with torch.device("meta"):
        learner = make_learner(config.replace(tasks=tasks, **rows), size.input_shape, size.classes)
    for task in range(tasks):
        learner.add_task(str(task), range(size.classes))
    tensors, state = learner.task_state()
    learner.load_task_state(tensors, {**state, **learner.learned_state(range(learned))})
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
    return stored_bytes(config, more=1) - stored_bytes(config)


def stored_bytes(config: RunConfig, *, more: int = 0) -> int:
    """Return what a learner that has learned its tasks is in a file, in bytes.

    That are the tensors of its ``state_dict``, as :func:`bytes_a_task` describes them.

    Args:
        config: The settings.
        more: Tasks beyond those of the run. Default 0.

    Raises:
        ConfigError: A setting does not fit.
    """
    size = scenario_size(config)
    tasks = size.tasks + more
    return sum(t.nbytes for t in weights_of(_learner(config, size, tasks, tasks)).values())


def trained_parameters(config: RunConfig) -> int:
    """Return how many numbers the optimizers of the last task hold, those of all phases together.

    Tables have a row for each task of the run.

    Args:
        config: The settings.

    Raises:
        ConfigError: A setting does not fit.
    """
    return sum(p.numel() for p in _trained(config)[1])


def trained_beside(config: RunConfig) -> int:
    """Return how many of :func:`trained_parameters` are not the target network's own.

    They are those of the hypernetwork with its embeddings, or of the scores that choose masks, and
    rows of normalization that a task has beside the network's.

    Args:
        config: The settings.

    Raises:
        ConfigError: A setting does not fit.
    """
    learner, trained = _trained(config)
    own = {id(p) for p in learner.target_weights()}
    return sum(p.numel() for p in trained if id(p) not in own)


def target_parameters(config: RunConfig) -> int:
    """Return how many parameters the plain target network of a run has.

    Args:
        config: The settings.

    Raises:
        ConfigError: A setting does not fit.
    """
    size = scenario_size(config)
    with torch.device("meta"):
        network = make_network(config.replace(tasks=size.tasks), size.input_shape, size.classes)
    return sum(p.numel() for p in network.parameters())


def _trained(config: RunConfig) -> tuple[Learner, Collection[Tensor]]:
    """Return a learner in its last task, and what the optimizers of that task's phases hold."""
    size, steps = scenario_size(config), config.training.steps or 1000
    last = size.tasks - 1
    learner = _learner(config, size, size.tasks, last)
    with evaluating(learner):
        learner(torch.empty(2, *size.input_shape, dtype=size.dtype, device="meta"), last)
    learner.begin_task(last, steps=steps)
    held: dict[int, Tensor] = {}
    for phase in learner.phases(last, steps):
        if learner.phase != phase.name:
            learner.begin_phase(phase.name)
        for group in learner.parameter_groups(phase.name):
            held |= {id(p): p for p in group.params}
    return learner, held.values()
