"""One learner whole in a file, without pickle, and back in another process."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.conversion.convert import treated_in, unconvert
from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.fields import check_value
from hypermask_fast.files.fit import in_a_sentence
from hypermask_fast.layers.norms import check_module
from hypermask_fast.methods import registry
from hypermask_fast.methods.base import Learner, check_learner
from hypermask_fast.methods.extra_state import EXTRA_STATE, check_storable, weights_of
from hypermask_fast.methods.replay.learner import ReplayLearner
from hypermask_fast.methods.settings import MethodSettings
from hypermask_fast.methods.sharded import shard_of
from hypermask_fast.saving import learner_file, network_of

_WEIGHTS, _OF_TASK = "learner/", "task/"
_CRITERION = "criterion."


def save(learner: Learner, path: str | os.PathLike[str], *, network: str | None = None) -> None:
    """Write a learner whole to a file: settings, weights, tasks, and what the current task needs.

    The file is safetensors with JSON in its header, and written atomically: a crash leaves the old
    one or the new. Optimizers are not in it, of which a training run's folder has the state, nor
    the criterion, a function of which it has the name.

    Args:
        learner: A learner of a method of this package, or of one that was registered.
        path: The file. One that a learner was saved in is replaced, every other one is refused.
        network: "module:function", which makes the network for :func:`load` and is called once here
            to see that it does. Not needed for networks of ``hmf.networks``, nor where
            :func:`load` is given one.

    Raises:
        ConfigError: The path is taken or cannot be written, the function makes another network,
            the learner's class is of no method, or processes share its head.
        CheckpointError: A module of the network has a state of its own that is no tensor.
        TypeError: It is no learner.
    """
    check_learner(learner)
    target = Path(check_value("path", str, path, path=True))
    if shard_of(learner) is not None:
        raise ConfigError(
            f"the learner has {shard_of(learner)} of a head that processes share, and {target} "
            "would lack the others; call save_sharded() in all processes"
        )
    learner_file.require_replaceable(target)
    learner.check_network()
    settings = _settings_of(learner)
    check_storable(learner)
    task_tensors, task_state = learner.task_state()
    tensors = {
        f"{_WEIGHTS}{name}": value
        for name, value in weights_of(learner).items()
        if not name.startswith(_CRITERION)
    }
    tensors |= {f"{_OF_TASK}{name}": value for name, value in task_tensors.items()}
    own = sys.modules[__name__.partition(".")[0]].__version__
    description = {
        "method": registry.name_of(settings),
        "settings": settings.values(),
        "arguments": _arguments_of(learner),
        "network": network_of.description_of(learner.net, network),
        "structure": network_of.structure_of(learner.net),
        "task": task_state,
        "class_dim": learner.class_dim,
        "criterion": None if learner.criterion is None else repr(learner.criterion),
        "frozen": [n for n, p in learner.named_parameters() if not p.requires_grad],
        "versions": {"hypermask_fast": own, "torch": str(torch.__version__)},
    }
    learner_file.write(target, tensors, description)


def load(path: str | os.PathLike[str], net: nn.Module | None = None) -> Learner:
    """Return the learner that :func:`save` wrote, in evaluation mode.

    Its outputs have the bits of the saved one's in the same environment, and it goes on with the
    next task, or within the task that it was saved in, with new optimizers. Where it had a
    criterion, there is a warning that it has to be set. The global random state stays the caller's.

    Args:
        path: The file. It may name a function that makes the network, which is imported and called:
            give ``net`` for files of others.
        net: A new network as the learner was built over; it is converted in place, and the learner
            is on its device. Default: one made as the file tells, on the CPU.

    Raises:
        CheckpointError: The file is missing, damaged or of another kind, or the network is another.
        ConfigError: The method or the function that makes the network cannot be found.
        TypeError: ``net`` is no network.
    """
    target = Path(check_value("path", str, path, path=True))
    if net is not None:
        check_module(net)
    tensors, description = learner_file.read(target)
    with in_a_sentence(target), torch.random.fork_rng():
        if net is None:
            net = network_of.made_again(description["network"])
        expected, given = description["structure"], network_of.structure_of(net)
        if description["versions"]["torch"] != str(torch.__version__):
            expected, given = _kinds(expected), _kinds(given)
        difference = network_of.differs(expected, given)
        if difference:
            raise CheckpointError(
                f"the network is not the one that {target} was saved with: {difference}; give the "
                "same, new"
            )
        return _remade(net, tensors, description)


def _settings_of(learner: Learner) -> MethodSettings:
    """Return the settings that make such a learner now; some may have been set on it since."""
    settings = learner.settings
    if settings is None:
        raise ConfigError(
            f"{type(learner).__name__} keeps no settings; let its constructor keep them as "
            "self._settings"
        )
    name = registry.name_of(settings)
    cls = registry.learner_of(name)
    if type(learner) is not cls:
        raise ConfigError(
            f"the learner is a {type(learner).__name__}, and the method {name!r} is "
            f"{cls.__name__}; register() the class as a method of its own, with its own settings"
        )
    now = {k: vars(learner).get(k, value) for k, value in settings.values().items()}
    return type(settings)(**now)


def _arguments_of(learner: Learner) -> dict[str, Any]:
    """Return what a learner's constructor took beside network and settings, as JSON values."""
    found: dict[str, Any] = {k: list(v) for k, v in treated_in(learner.net).items() if v}
    if isinstance(learner, ReplayLearner):
        found["input_shape"] = list(learner.input_shape)
    return found


def _kinds(structure: Mapping[str, str]) -> dict[str, str]:
    """Return the classes in a structure; another version may word their options differently."""
    return {name: text.partition("(")[0] for name, text in structure.items()}


def _remade(
    net: nn.Module, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> Learner:
    method = description["method"]
    settings = registry.settings_of(method)(**description["settings"])
    make: Any = registry.learner_of(method)
    learner: Learner = make(net, settings=settings, **_escaped(description["arguments"]))
    try:
        _fill(learner, tensors, description)
    except BaseException:
        unconvert(net)
        raise
    return learner.eval()


def _fill(learner: Learner, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    device = next(learner.parameters()).device
    parts: dict[str, dict[str, Tensor]] = {_WEIGHTS: {}, _OF_TASK: {}}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        parts[f"{part}/"][rest] = value.to(device)
    learner.load_task_state(parts[_OF_TASK], description["task"])
    _take_dtypes(learner, parts[_WEIGHTS])
    tasks = {EXTRA_STATE: learner.get_extra_state()}
    learner.load_state_dict({**parts[_WEIGHTS], **tasks})
    learner.class_dim = description["class_dim"]
    if description["criterion"] is not None:
        warnings.warn(
            f"the learner was saved with the criterion {description['criterion']}, which a file "
            "cannot hold; set learner.criterion before it learns more",
            RuntimeWarning,
            stacklevel=4,
        )
    frozen = set(description["frozen"])
    for name, parameter in learner.named_parameters():
        parameter.requires_grad_(name not in frozen)


def _take_dtypes(learner: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the dtypes of those that they are set to."""
    for name, value in weights_of(learner, keep_vars=True).items():
        saved = weights.get(name)
        if saved is not None and saved.dtype != value.dtype:
            value.data = value.data.to(saved.dtype)


def _escaped(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a constructor's arguments, in which names stand for themselves and are no globs."""
    escape = {ord(letter): f"[{letter}]" for letter in "*?["}
    return {
        option: tuple(v.translate(escape) if isinstance(v, str) else v for v in values)
        for option, values in arguments.items()
    }
