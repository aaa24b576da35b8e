"""From settings to what they describe: scenario, network, learner and trainer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from hypermask_fast import networks, scenarios
from hypermask_fast.errors import ConfigError
from hypermask_fast.methods import registry
from hypermask_fast.methods.base import Learner
from hypermask_fast.networks.catalogue import OwnNetworkSettings
from hypermask_fast.scenarios import Scenario
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.own import check_outputs, make_own_network, make_own_scenario
from hypermask_fast.training.trainer import Trainer


def make_scenario(config: RunConfig) -> Scenario:
    """Return the scenario.

    Raises:
        ConfigError: A setting does not fit.
        DataError: A data file is missing or damaged.
    """
    chosen = config.scenario
    if chosen.is_own:
        return make_own_scenario(config)
    return scenarios.make_scenario(
        chosen.name,
        chosen.data_dir,
        tasks=chosen.tasks,
        validation=chosen.validation,
        augment=chosen.augment,
        normalize=chosen.normalize,
        identity_first=chosen.identity_first,
        seed=config.run.seed,
    )


def outputs_of(config: RunConfig, num_classes: int) -> int:
    """Return the outputs that a run's network needs; `num_classes` as in :func:`make_network`."""
    if config.tasks is None:
        raise ValueError(
            f"scenario={config.scenario.name!r} is a function, whose number of tasks is not known; "
            "give RunConfig.replace(tasks=)"
        )
    return config.method.outputs(tasks=config.tasks, classes=num_classes)


def make_network(config: RunConfig, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """Return a new target network.

    Args:
        config: The settings.
        input_shape: Of one input.
        num_classes: Classes of a task, at most.

    Raises:
        ConfigError: The network does not take such inputs, or a function of one's own fails.
    """
    outputs = outputs_of(config, num_classes)
    if isinstance(config.network, OwnNetworkSettings):
        return make_own_network(config.network, input_shape, outputs, config.run.seed)
    options: dict[str, Any] = config.network.values()
    if config.network.normalized:
        options["track_running_stats"] = config.method.running_statistics
    return networks.make_network(config.network.name, input_shape, outputs, **options)


def make_learner(
    config: RunConfig, input_shape: Sequence[int], num_classes: int, examples: Iterable[Tensor] = ()
) -> Learner:
    """Return a new learner of the chosen method, on the default device.

    Args:
        config, input_shape, num_classes: As in :func:`make_network`.
        examples: Batches of inputs, one of each shape; where the network or the scenario is one's
            own, the network is tried on them before it is converted.

    Raises:
        ConfigError: As in :func:`make_network`, or the network fails or has too few outputs.
    """
    network = make_network(config, input_shape, num_classes)
    if isinstance(config.network, OwnNetworkSettings) or config.scenario.is_own:
        for x in examples:
            check_outputs(config.network.name, network, x, outputs_of(config, num_classes))
    learner: Any = registry.learner_of(config.method_name)
    shape = {"input_shape": tuple(input_shape)} if learner.takes_input_shape else {}
    made: Learner = learner(network, settings=config.method, **shape)
    # The checkpoints of a run hold the start of a task.
    made.keeps_start = False
    return made


def make_trainer(config: RunConfig, learner: Learner) -> Trainer:
    """Return a new trainer, which shows no progress.

    Raises:
        ConfigError: Steps are to be CUDA graphs, and the learner is on another device.
    """
    device = next(learner.parameters()).device
    if config.training.graph is True and device.type != "cuda":
        raise ConfigError(
            f"graph is True and the learner is on {device.type}; use device='cuda', or graph='auto'"
        )
    return Trainer(learner, progress=False, seed=config.run.seed, settings=config.training)
