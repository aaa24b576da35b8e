"""What layers run with in place of their own state: in a forward, not on the layers.

It belongs to the thread that entered the forward. Where activation checkpointing repeats a part of
the forward in a backward pass, the part is run with what it ran with first.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn

_NONE: dict[nn.Module, Any] = {}


class _Local(threading.local):
    # torch.compile traces a read of these, which it does not for a ContextVar.
    forward: Forward | None = None
    stand_ins: Mapping[nn.Module, Any] = _NONE


_local = _Local()
_entered: set[Forward] = set()
_repeatable: WeakSet[Forward] = WeakSet()
# Layers that ran without a graph in a forward with gradients, as re-entrant checkpointing does.
_without_graph: WeakSet[nn.Module] = WeakSet()


class Forward:
    """A context in which layers of this thread run with what stands in for their own state.

    Args:
        stand_ins: By layer; None stands for its own state. Those of an outer context stay for
            other layers.

    Attributes:
        without_graph: Layers that ran without gradients, where the context was entered with them.
    """

    def __init__(self, stand_ins: Mapping[nn.Module, Any]) -> None:
        self.stand_ins = stand_ins
        self.without_graph: list[nn.Module] = []
        self._nodes = (0, 0)
        self._with_gradients = False

    def __enter__(self) -> Self:
        self._outer = _local.forward, _local.stand_ins
        if self._outer[1]:
            self.stand_ins = {**self._outer[1], **self.stand_ins}
        _local.forward, _local.stand_ins = self, self.stand_ins
        if not torch.compiler.is_compiling():
            self._with_gradients = torch.is_grad_enabled()
            self._nodes = (torch._C._autograd._get_sequence_nr(), 2**63)
            _entered.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        if not torch.compiler.is_compiling():
            _entered.discard(self)
            self._nodes = (self._nodes[0], torch._C._autograd._get_sequence_nr())
        if _local.forward is not self:
            _local.forward, _local.stand_ins = None, _NONE
            raise RuntimeError(
                "the contexts of two tasks were left in another order than entered in one thread, "
                "so one of them ran with the other's weights; give each its own thread, or leave "
                "one before the next is entered; compile the network, not the learner or its "
                "losses"
            )
        _local.forward, _local.stand_ins = self._outer
        del self._outer

    def is_here(self) -> bool:
        """Return whether this thread is in the context."""
        return _local.forward is self

    def ran(self, layer: nn.Module, y: Tensor) -> None:
        """Let what is repeated of this forward find it, as long as the graph of y lives."""
        if y.grad_fn is not None:
            # Nodes of the data are not reached from the weights, so this is no circle.
            y.grad_fn.metadata[Forward] = self  # type: ignore[index]  # It is a property.
            _repeatable.add(self)
        elif self._with_gradients and not torch.is_grad_enabled():
            _without_graph.add(layer)
            self.without_graph.append(layer)

    def was_read(self, layer: nn.Module) -> None:
        """Take note that a layer's stand-in was read without gradients."""
        if self._with_gradients:
            _without_graph.add(layer)

    def has(self, layer: nn.Module, node: int) -> bool:
        """Return whether a node of the graph was made in this forward, which has the layer."""
        return layer in self.stand_ins and self._nodes[0] <= node < self._nodes[1]


def is_repeated() -> bool:
    """Return whether this forward runs in a backward pass."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _of_another(layer: nn.Module) -> Any:
    """Return what a layer without a stand-in in this thread runs with, in place of itself."""
    if torch.compiler.is_compiling():
        return None
    if torch._C._current_graph_task_id() != -1:
        node = torch._C._current_autograd_node()
        number = -1 if node is None else node._sequence_nr()
        found = [forward for forward in _repeatable if forward.has(layer, number)]
        if len(found) == 1:
            return found[0].stand_ins[layer]
        if found or layer in _without_graph:
            raise RuntimeError(
                f"a {type(layer).__name__} is run again in a backward pass, and it is not known "
                "with which task's weights it ran first; use activation checkpointing with "
                "use_reentrant=False, and one thread for a learner's forward and backward"
            )
    elif any(layer in forward.stand_ins for forward in tuple(_entered)):
        raise RuntimeError(
            f"a {type(layer).__name__} was called in a thread that did not enter a task's context, "
            "while another thread is in one; enter learner.activated() in the thread that runs the "
            "network"
        )
    return None


def stand_in(layer: Converted) -> Any:
    """Return what a layer runs with now in place of its own state, or None.

    Raises:
        RuntimeError: The layer is in another thread's forward only, or it is run again in a
            backward pass and it is not known what it ran with first.
    """
    found = _local.stand_ins.get(layer, _NONE)
    if found is _NONE:
        found = _of_another(layer)
    return getattr(layer, layer._hypermask_fast_active, None) if found is None else found


def standing_in(layer: Converted) -> Any:
    """Return what a layer's attributes are read from in place of its own state, or None.

    In a thread without a forward they are the layer's own, whatever other threads are in.

    Raises:
        RuntimeError: They are read again in a backward pass and it is not known what stood in
            first.
    """
    found = _local.stand_ins.get(layer, _NONE)
    if found is _NONE:
        found = _of_another(layer) if is_repeated() else None
    return getattr(layer, layer._hypermask_fast_active, None) if found is None else found


def ran(layer: nn.Module, y: Tensor) -> Tensor:
    """Take note of an output where a checkpoint may repeat a layer, and return it."""
    forward = _local.forward
    if forward is None or torch.compiler.is_compiling():
        return y
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is not None or not torch.is_grad_enabled():
        forward.ran(layer, y)
    return y


def was_read(layer: nn.Module, value: Tensor) -> Tensor:
    """Take note that a stand-in was read where a checkpoint may repeat that, and return it."""
    forward = _local.forward
    if forward is None or torch.compiler.is_compiling():
        return value
    if not torch.is_grad_enabled():
        forward.was_read(layer)
    elif value.requires_grad and torch._C._autograd._top_saved_tensors_default_hooks(True):
        # A node of the data's graph: the stand-in's own would be a circle.
        value = value.view_as(value)
        forward.ran(layer, value)
    return value


class Converted(nn.Module):
    """A module that can run with something in place of its own state, or of its parameters.

    It may be of a user's class: what is defined here must not hide what that has.
    """

    # The name of an attribute with what stands in wherever no forward says otherwise. Class
    # attributes: a plain layer that is converted in place gets them without an __init__.
    _hypermask_fast_active: ClassVar[str] = "_hypermask_fast_stand_in"

    def __copy__(self) -> Self:
        # Shares all that nn.Module's copy shares, and what stands in with its gradient.
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        vars(twin).pop("_compiled_call_impl", None)
        now = _local.stand_ins.get(self)
        if now is not None:
            vars(twin)[self._hypermask_fast_active] = now
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a deep copy or pickle, with what stands in cut from its graph."""
        state = dict(super().__getstate__())
        name, now = self._hypermask_fast_active, _local.stand_ins.get(self)
        now = getattr(self, name, None) if now is None else now
        if now is not None:
            state[name] = _leaves(now)
        return state

    def _replicate_for_data_parallel(self) -> Any:
        raise RuntimeError(
            f"nn.DataParallel cannot copy a {type(self).__name__} with a task's weights to other "
            "devices; use one process for each device, as DistributedDataParallel does"
        )


class TaskLayer(Converted):
    """What layers share that can run with something in place of their own state.

    Attributes:
        plain: The class of the plain layer.
        active: What stands in wherever no forward says otherwise, or None.
    """

    _hypermask_fast_active = "active"
    plain: ClassVar[type[nn.Module]]
    active: Any = None

    def stand_in(self) -> Any:
        """Return what :func:`stand_in` does."""
        return stand_in(self)

    def here(self) -> Any:
        """Return what this thread's forward runs the layer with, or None."""
        return _local.stand_ins.get(self)

    def ran(self, y: Tensor) -> Tensor:
        """Return y, as :func:`ran` does."""
        return ran(self, y)


def _leaves(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _leaves(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return type(value)(*map(_leaves, value))
    if not isinstance(value, Tensor):
        return value
    # A result of autograd refuses to be copied; it may also be a view of a whole network's logits.
    return value if value.is_leaf and value._base is None else value.detach().clone()
