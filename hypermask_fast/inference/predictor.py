"""Plain networks of the tasks asked for last, for threads that ask for many."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.fields import check_value
from hypermask_fast.inference.export import export_subnet
from hypermask_fast.methods.base import Learner, check_learner

_State = tuple[object, ...]


class MultiTaskPredictor:
    """Calls a learner's tasks through plain networks, of which it keeps those used last.

    A plain network has its masks multiplied in, so that a call costs what the target network does.
    Any number of threads may call one predictor, which makes each network once. Where the learner
    changed since, by training, by a state that was loaded, or by anything that PyTorch counts as a
    change of its tensors or that sets one of its settings, the networks are made anew; while a task
    is being learned, at every call. Only what writes through ``.data`` is not noticed: call
    :meth:`clear` after that.

    Args:
        learner: The learner.
        max_tasks: The most networks to keep; each takes the target network's memory. Default 8.

    Raises:
        ConfigError: The number is no integer of at least 1.
        TypeError: It is no learner.
    """

    def __init__(self, learner: Learner, max_tasks: int = 8) -> None:
        self.learner = check_learner(learner)
        self.max_tasks: int = check_value("max_tasks", int, max_tasks, low=1)
        self._lock = threading.Lock()
        self._networks: OrderedDict[int, nn.Module] = OrderedDict()
        self._state: _State | None = None

    @property
    def tasks(self) -> tuple[int, ...]:
        """The tasks whose networks are kept, that used last at the end."""
        with self._lock:
            return tuple(self._networks)

    def clear(self) -> None:
        """Forget the networks, so that they are made anew."""
        with self._lock:
            self._networks.clear()

    @torch.no_grad()
    def __call__(self, x: Tensor, task: int | str, **kwargs: Any) -> Any:
        """Return a task's outputs, without gradients and in evaluation mode.

        Args:
            x: Inputs (batch, ...).
            task: The id of a task that was added, or its name.
            kwargs: Other inputs that the network takes by name.

        Returns:
            The outputs (batch, outputs); those that the task has no class for are -inf.

        Raises:
            ValueError: The task was not added.
            RuntimeError: The learner has seen no input, so that the unmasked bias is not known yet.
        """
        task = self.learner.task_id(task)
        outputs = self._network(task)(x, **kwargs)
        classes = self.learner.tasks[task].classes
        if classes is None or not isinstance(outputs, Tensor) or outputs.dim() != 2:
            return outputs
        foreign = torch.arange(outputs.shape[1], device=outputs.device) >= len(classes)
        return outputs.masked_fill(foreign, -torch.inf)

    def _network(self, task: int) -> nn.Module:
        with self._lock:
            state = _state_of(self.learner)
            if state != self._state:
                self._networks.clear()
                self._state = state
            net = self._networks.get(task)
            if net is None:
                net = export_subnet(self.learner, task)
                # What another thread trained meanwhile may be in it by half.
                if self.learner.current is None and _state_of(self.learner) == state:
                    self._networks[task] = net
            if task in self._networks:
                self._networks.move_to_end(task)
            if len(self._networks) > self.max_tasks:
                self._networks.popitem(last=False)
            return net

    def __repr__(self) -> str:
        return f"MultiTaskPredictor({type(self.learner).__name__}, max_tasks={self.max_tasks})"


def _state_of(learner: Learner) -> _State:
    """Return what differs wherever a learner that learns no task was changed."""
    settings = {} if learner.settings is None else learner.settings.values()
    tensors = (*learner.parameters(), *learner.buffers())
    return (
        learner.generation,
        learner.current,
        *(vars(learner).get(name) for name in settings),
        *((id(t), t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype) for t in tensors),
        *map(id, learner.net.modules()),
    )
