"""Tasks that cannot change any more: all that their forwards read, kept as it was used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.console.words import size
from hypermask_fast.conversion.network import ConvertedNetwork
from hypermask_fast.conversion.norm_tables import State, TaskNorms
from hypermask_fast.held import Fixed
from hypermask_fast.layers.norms import TaskNorm
from hypermask_fast.methods.batches import sum_of

Tensors = dict[str, Tensor]
"""Tensors by their names in the target network."""


class _Kept(nn.Module):
    """The tensors of one task, in order."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        for place, tensor in enumerate(tensors):
            self.register_buffer(str(place), tensor)


def _tensors_of(net: nn.Module) -> Tensors:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def _moving_buffers(net: nn.Module) -> Tensors:
    """Return the buffers that a ``state_dict`` has, but those of normalisation layers."""
    return {
        f"{name}.{key}".lstrip("."): buffer
        for name, module in net.named_modules()
        if not isinstance(module, TaskNorm)
        for key, buffer in module._buffers.items()
        if buffer is not None and key not in module._non_persistent_buffers_set
    }


@contextmanager
def _swapped(net: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a network's modules hold other tensors inside a ``with`` block, by their names."""
    own = _tensors_of(net)
    others = {id(own[name]): value for name, value in values.items()}
    undone: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in net.modules() if others else ():
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for held in tables:
                for key, tensor in list(held.items()):
                    if id(tensor) in others:
                        undone.append((held, key, tensor))
                        held[key] = others[id(tensor)]
            # Recurrent layers read their weights from a list.
            flat = vars(module).get("_flat_weights")
            if flat is not None:
                undone.append((vars(module), "_flat_weights", flat))
                vars(module)["_flat_weights"] = [others.get(id(w), w) for w in flat]
        yield
    finally:
        for held, key, tensor in undone:
            held[key] = tensor


class FrozenTasks(Fixed):
    """What the forwards of frozen tasks read of the target network: N numbers a task, and the rest.

    For each of them the masked weights are kept as they are used; beside these the parameters and
    statistics of normalisation, the task's own copies of parameters, the parameters that are shared
    without a mask, and buffers that a ``state_dict`` has. What an ``exclude`` froze is not kept.

    Where a network has shared parameters or buffers of its own, its modules hold the kept ones
    while a frozen task runs: let one thread at a time run it.

    Args:
        network: The target network.
        norms: Its normalisation.
    """

    def __init__(self, network: ConvertedNetwork, norms: TaskNorms) -> None:
        super().__init__()
        self._of = (network, norms)  # In a tuple: they are parts of the learner.

    @property
    def ids(self) -> list[int]:
        """The frozen tasks, in the order in which they were frozen."""
        return [int(name) for name in self._modules]

    def _beside(self, task: int) -> Tensors:
        """Return what a task's forward reads now beside masked weights."""
        network, norms = self._of
        shared = dict(zip(network.shared, network.shared_weights(), strict=True))
        return {**shared, **_moving_buffers(network.net), **norms.tensors(task)}

    @torch.no_grad()
    def keep(self, task: int, weights: Mapping[str, Tensor]) -> None:
        """Freeze a task.

        Args:
            task: The task.
            weights: Its masked weights, in the order of the network's tensors.
        """
        found = (*weights.values(), *self._beside(task).values())
        self.add_module(str(task), _Kept(value.detach().clone() for value in found))

    def take(self, ids: Sequence[int]) -> None:
        """Have room for what a state holds of these tasks; others are not frozen any more."""
        for task in self.ids:
            if task not in ids:
                del self._modules[str(task)]
        for task in ids:
            if str(task) not in self._modules:
                self.add_module(str(task), self._room())

    @torch.no_grad()
    def _room(self) -> _Kept:
        own = (*self._of[0].weights(), *self._beside(0).values())
        return _Kept(torch.zeros_like(value) for value in own)

    def state_like(self, ids: Sequence[int], prefix: str) -> Tensors:
        """Return tensors of the names and shapes that a ``state_dict`` has of these tasks."""
        own = (*self._of[0].weights(), *self._beside(0).values()) if ids else ()
        return {f"{prefix}{task}.{i}": value for task in ids for i, value in enumerate(own)}

    def weights(self, task: int) -> Tensors:
        """Return the masked weights of a frozen task, not to be written to."""
        names = [entry.name for entry in self._of[0].tensors]
        return dict(zip(names, self.get_submodule(str(task)).buffers(), strict=False))

    def beside(self, task: int) -> Tensors:
        """Return what is kept of a frozen task beside its masked weights."""
        names = self._beside(task)
        values = list(self.get_submodule(str(task)).buffers())[len(self._of[0].tensors) :]
        return dict(zip(names, values, strict=True))

    def blended(self, alpha: Tensor) -> Tensors:
        """Return what is beside masked weights, a blend of the first tasks', by alpha (tasks,).

        What is the network's own for all of them, and integers, stay as they are.
        """
        own, frozen = _tensors_of(self._of[0].net), self.ids
        tasks = range(len(alpha))
        parts = [self.beside(task) if task in frozen else self._beside(task) for task in tasks]
        found: Tensors = {}
        for name in parts[0]:
            values = [part[name] for part in parts]
            same = all(value is own.get(name) for value in values)
            if same or not values[0].is_floating_point():
                found[name] = own[name]
                continue
            found |= sum_of(({name: value} for value in values), alpha)
        return found

    @contextmanager
    def running(self, beside: Mapping[str, Tensor]) -> Iterator[list[tuple[nn.Module, State]]]:
        """Let the network hold what is kept; give the states of normalisation and copies.

        Args:
            beside: Of :meth:`beside` or :meth:`blended`.
        """
        network, norms = self._of
        buffers = _moving_buffers(network.net)
        # A forward in training mode may write to buffers.
        held = {name: beside[name].clone() for name in buffers}
        held |= {name: beside[name] for name in network.shared}
        with _swapped(network.net, held):
            yield norms.states_of(beside)

    @torch.no_grad()
    def install(self, net: nn.Module, task: int) -> None:
        """Copy what is kept of a frozen task, but masked weights, into a plain network."""
        own = _tensors_of(net)
        for name, value in self.beside(task).items():
            own[name].copy_(value)

    def describe(self) -> str:
        """Return a line about the frozen tasks and the memory they take."""
        network = self._of[0]
        each = sum(w.nbytes for w in network.weights())
        return f"frozen tasks: {len(self.ids)}; {size(each)} of masked weights for each"

    def extra_repr(self) -> str:
        return f"ids={self.ids}"
