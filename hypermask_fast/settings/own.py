"""Networks and scenarios that functions of one's own make, ``module:function`` in the settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.errors import ConfigError, shown
from hypermask_fast.factories import call_factory, failing_as
from hypermask_fast.networks.catalogue import OwnNetworkSettings
from hypermask_fast.scenarios import Scenario, Task, from_data, make_task
from hypermask_fast.scenarios.seeding import seeded, seeded_python
from hypermask_fast.settings.config import RunConfig


def make_own_network(
    chosen: OwnNetworkSettings, input_shape: Sequence[int], outputs: int, seed: int
) -> nn.Module:
    """Return the network that a function of one's own makes.

    On the meta device, where a plan asks for it, a function that needs values runs on the CPU.

    Args:
        chosen: The function and its options.
        input_shape: Of one input; given to a parameter of this name.
        outputs: What the network must have at least; given to a parameter ``num_outputs`` or
            ``num_classes``, or as ``num_classes`` where there is only ``**any``.
        seed: For Python's and NumPy's generators; torch's are the caller's.

    Raises:
        ConfigError: There is no such function, or it makes no module.
    """
    offered = {"input_shape": tuple(input_shape), "num_outputs": outputs, "num_classes": outputs}
    options = chosen.arguments()

    def made() -> nn.Module:
        with seeded_python(seed):
            found = call_factory("network", chosen.name, offered, options, otherwise="num_classes")
        if not isinstance(found, nn.Module):
            raise ConfigError(
                f"network={chosen.name!r} returned {shown(found)}, a {type(found).__name__}; "
                "return an nn.Module"
            )
        return found

    if torch.get_default_device().type != "meta":
        return made()
    try:
        return made().to("meta")
    except Exception:  # of whatever it does with values, which tensors do not have here
        with torch.device("cpu"), torch.random.fork_rng():
            return made().to("meta")


def check_outputs(name: str, network: nn.Module, x: Tensor, outputs: int) -> None:
    """Run a network once, in evaluation, which leaves its state as it is.

    Args:
        name: Its name in the settings, for errors.
        network: The network, before it is converted.
        x: Some inputs, which get its device and floating-point type, as those of tasks do.
        outputs: What it must have at least.

    Raises:
        ConfigError: It fails, or has fewer outputs.
    """
    mode = [(module, module.training) for module in network.modules()]
    x = x.to(next((p.device for p in network.parameters()), x.device))
    types = {p.dtype for p in network.parameters() if p.is_floating_point()}
    if x.is_floating_point() and len(types) == 1:
        x = x.to(types.pop())
    what = f"network={name!r} fails on inputs of shape {tuple(x.shape)} and {x.dtype}"
    with torch.no_grad(), torch.random.fork_rng():
        network.eval()
        try:
            with failing_as(what, "correct the network, or make another for this scenario"):
                found = network(x)
        finally:
            for module, training in mode:
                module.training = training
    if isinstance(found, Tensor) and (found.dim() < 2 or found.shape[-1] < outputs):
        raise ConfigError(
            f"network={name!r} gives outputs of shape {tuple(found.shape)} for {len(x)} "
            f"inputs, and the run needs {outputs} outputs or more for each; take num_outputs as a "
            "parameter of the function"
        )


def make_own_scenario(config: RunConfig) -> Scenario:
    """Return the scenario that a function of one's own makes, of as many tasks as are asked for.

    The global generators are seeded with the run's seed while it is called, and then as before.

    Args:
        config: Settings whose scenario is a function. It gets the run's ``data_dir`` and ``seed``
            where it has parameters of these names.

    Raises:
        ConfigError: There is no such function, it makes no tasks, or too few.
        DataError: A data file is missing or damaged.
    """
    chosen, seed = config.scenario, config.run.seed
    offered = {"data_dir": chosen.data_dir, "seed": seed}
    what = f"scenario={chosen.name!r}"
    with seeded(seed), failing_as(f"{what} makes no tasks", "correct the function"):
        made = call_factory("scenario", chosen.name, offered, chosen.arguments())
        scenario = _as_scenario(chosen.name, made)
    names = [task.name for task in scenario]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise ConfigError(f"{what} has two tasks called {twice!r}; give each its own name")
    if chosen.tasks is not None and chosen.tasks > len(scenario):
        raise ConfigError(
            f"tasks={chosen.tasks} is more than the {len(scenario)} of {what}; give at most as many"
        )
    return scenario[: chosen.tasks]


def _as_scenario(name: str, made: Any) -> Scenario:
    if isinstance(made, Scenario):
        return made
    if isinstance(made, Mapping):
        return from_data(made, name=name)
    if isinstance(made, Iterable) and not isinstance(made, str | bytes | Tensor):
        return Scenario(name, list(_tasks(made)))
    raise TypeError(
        f"it returned {shown(made)}; return a Scenario, or a list of Tasks or of arguments of "
        "scenarios.make_task"
    )


def _tasks(made: Iterable[Any]) -> Iterator[Task]:
    for item in made:
        if isinstance(item, Task):
            yield item
        elif isinstance(item, Mapping):
            yield make_task(**item)
        elif isinstance(item, tuple) and len(item) == 3:
            yield make_task(*item)
        else:
            raise TypeError(
                f"it returned a task {shown(item)}; give a Task, (name, train, test), or a dict of "
                "arguments of scenarios.make_task"
            )
