"""Normalisation of a converted network: statistics of the batch, of each task, or frozen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from hypermask_fast.conversion.convert import entries_in, freeze
from hypermask_fast.conversion.copies import CopiedRows, TaskCopies
from hypermask_fast.conversion.entries import NORMALISATION, PER_TASK, SHARED
from hypermask_fast.errors import ConfigError
from hypermask_fast.layers.norms import NORM_KEYS, NormState, TaskNorm
from hypermask_fast.optim.rows import take_rows
from hypermask_fast.tables import add_rows

_STATISTICS = ("running_mean", "running_var")
_KEYS = (*NORM_KEYS, *_STATISTICS)


State = NormState | CopiedRows
"""What stands in for a normalisation layer's state, or for parameters that tasks have copies of."""


def _own(layer: nn.Module) -> NormState:
    held: dict[str, Any] = {**layer._parameters, **layer._buffers}
    weight, bias, mean, var = (held.get(key) for key in _KEYS)
    return NormState(weight, bias, mean, var)


def _held(name: str, mode: str, reasons: Mapping[str, str], *, affine: bool) -> frozenset[str]:
    """Return what the rows of a layer hold: its statistics, and parameters."""
    rows = mode == "per_task"
    keys = {
        key
        for key in NORM_KEYS
        for reason in [reasons.get(f"{name}.{key}".lstrip("."), NORMALISATION)]
        if reason == PER_TASK or (rows and affine and reason != SHARED)
    }
    return frozenset(keys | (set(_STATISTICS) if rows else set()))


def _over(own: NormState, row: NormState) -> NormState:
    """Return a row's state, with a layer's own where the row holds nothing."""
    weight, bias, mean, var = (
        old if new is None else new for old, new in zip(own[:4], row[:4], strict=True)
    )
    return NormState(weight, bias, mean, var, row.learning)


class NormTable(nn.Module):
    """The states of one normalisation layer, a row a task; each starts as the layer's own.

    Args:
        name: Of the layer, for errors.
        layer: The layer, whose parameters and statistics are copied ``capacity`` times.
        capacity: Rows.
        keys: What the rows hold. Default: all.

    Raises:
        ConfigError: The layer is a batch norm without running statistics, or averages them
            cumulatively (momentum None), which a row a task cannot hold.
    """

    def __init__(
        self, name: str, layer: TaskNorm, capacity: int, *, keys: Collection[str] = _KEYS
    ) -> None:
        super().__init__()
        counts = isinstance(layer, _BatchNorm) and "running_mean" in keys
        if counts and (layer.running_mean is None or layer.momentum is None):
            raise ConfigError(
                f"{name} is a {layer.plain.__name__} with track_running_stats="
                f"{layer.track_running_stats} and momentum={layer.momentum}, and bn='per_task' "
                "keeps running statistics with a momentum; build it with both, or use bn='batch'"
            )
        for key, value in zip(_KEYS, _own(layer)[:4], strict=True):
            if value is None or key not in keys:
                self.register_buffer(key, None)
                continue
            rows = value.detach().expand(capacity, *value.shape).clone()
            if isinstance(value, nn.Parameter):
                # One that was frozen before stays so.
                self.register_parameter(key, nn.Parameter(rows, value.requires_grad))
            else:
                self.register_buffer(key, rows)

    @torch.no_grad()
    def grow(self, layer: TaskNorm, capacity: int) -> None:
        """Add rows, which start as the layer's own."""
        for key, value in zip(_KEYS, _own(layer)[:4], strict=True):
            table = getattr(self, key)
            if table is None or value is None:
                continue
            rows = value.detach().expand(capacity - len(table), *value.shape)
            if isinstance(table, nn.Parameter):
                add_rows(table, rows)
            else:
                setattr(self, key, torch.cat((table, rows)))

    @torch.no_grad()
    def set_row(self, task: int, of: NormState) -> None:
        """Make a row as a state."""
        for table, value in zip(_own(self)[:4], of[:4], strict=True):
            if table is not None and value is not None:
                table[task] = value

    def state(self, task: int, learning: bool) -> NormState:
        """Return the row of a task; running statistics are views that a forward moves."""
        tables = _own(self)[:4]
        weight, bias, mean, var = (
            None if table is None else take_rows(table, task) for table in tables
        )
        return NormState(weight, bias, mean, var, learning)

    def blended(self, alpha: Tensor) -> NormState:
        """Return the sum of the first rows, times their factors alpha (tasks,)."""
        count, tables = len(alpha), _own(self)[:4]
        weight, bias, mean, var = (
            None if table is None else torch.tensordot(alpha, take_rows(table, slice(count)), 1)
            for table in tables
        )
        return NormState(weight, bias, mean, var)

    @torch.no_grad()
    def install(self, layer: nn.Module, task: int) -> None:
        """Copy the row of a task into a plain layer."""
        for table, own in zip(_own(self)[:4], _own(layer)[:4], strict=True):
            if table is not None and own is not None:
                own.copy_(table[task])


class TaskNorms(nn.Module):
    """All normalisation layers of a converted network, and what else its tasks have copies of.

    Args:
        net: The converted network; layers that its conversion froze stay frozen in every mode, and
            parameters that it shares or copies for each task are shared and copied in every mode.
        mode: "batch": shared parameters and the batch's statistics, in training and evaluation.
            "per_task": a row of a :class:`NormTable` for each task. "frozen": as they are.
        capacity: Rows.
        affine: Whether rows of "per_task" hold parameters beside the statistics. Default True.

    Attributes:
        copies: Of parameters that are no normalisation's.

    Raises:
        ConfigError: A layer cannot have rows; see :class:`NormTable`.
    """

    def __init__(self, net: nn.Module, mode: str, capacity: int, *, affine: bool = True) -> None:
        super().__init__()
        # In a dict, not registered: the layers belong to the network.
        self._layers = {name: m for name, m in net.named_modules() if isinstance(m, TaskNorm)}
        free = [name for name, layer in self._layers.items() if not layer.frozen]
        self._batch = free if mode == "batch" else []
        reasons = {entry.name: entry.reason for entry in entries_in(net)}
        held = {
            name: _held(name, mode if name in free else "frozen", reasons, affine=affine)
            for name in self._layers
        }
        self._shared = {
            f"{name}.{key}"
            for name in self._layers
            for key in NORM_KEYS
            if reasons.get(f"{name}.{key}") == SHARED
        }
        self._tabled = [name for name, keys in held.items() if keys]
        self.tables = nn.ModuleList(
            NormTable(name, self._layers[name], capacity, keys=held[name]) for name in self._tabled
        )
        of_norms = set(self.parameter_names())
        copied = [name for name, reason in reasons.items() if reason == PER_TASK]
        self.copies = TaskCopies(net, [n for n in copied if n not in of_norms], capacity)
        freeze(net, copied)

    def parameter_names(self) -> list[str]:
        """Return the names of the layers' own parameters in the network, but for shared ones."""
        names = [
            f"{name}.{key}".lstrip(".")
            for name, layer in self._layers.items()
            for key, _ in layer.named_parameters(recurse=False)
        ]
        return [name for name in names if name not in self._shared]

    def _rows(self) -> Iterator[tuple[str, NormTable]]:
        for name, table in zip(self._tabled, self.tables, strict=True):
            assert isinstance(table, NormTable)
            yield name, table

    def grow(self, capacity: int) -> None:
        """Add rows to every table."""
        for name, table in self._rows():
            table.grow(self._layers[name], capacity)
        self.copies.grow(capacity)

    def copy_row(self, source: int, task: int) -> None:
        """Give a task the states and copies of another one."""
        for _, table in self._rows():
            table.set_row(task, table.state(source, learning=False))
        self.copies.set_row(task, source)

    def renew_row(self, task: int) -> None:
        """Give a task the layers' own states, and the network's own parameters."""
        for name, table in self._rows():
            table.set_row(task, _own(self._layers[name]))
        self.copies.set_row(task, None)

    def states(self, task: int, *, learning: bool) -> list[tuple[nn.Module, State]]:
        """Return each layer with its state for a task, and the task's copies, if there are any.

        Args:
            task: The row.
            learning: Whether a forward in training mode may move the task's running statistics.
        """
        states = self._with_tables({name: t.state(task, learning) for name, t in self._rows()})
        return [*states, *self._copied(self.copies.state(task))]

    def tensors(self, task: int) -> dict[str, Tensor]:
        """Return all that is in the :meth:`states` of a task, by names in the network."""
        found: dict[str, Tensor] = {}
        states = self._with_tables({name: t.state(task, False) for name, t in self._rows()})
        for name, (_, state) in zip(self._layers, states, strict=True):
            named = zip(_KEYS, state[:4], strict=True)
            found |= {f"{name}.{k}".lstrip("."): v for k, v in named if v is not None}
        return {**found, **self.copies.state(task).values}

    def states_of(self, tensors: Mapping[str, Tensor]) -> list[tuple[nn.Module, State]]:
        """Return the states that have the tensors of :meth:`tensors`."""
        states: list[tuple[nn.Module, State]] = []
        for name, layer in self._layers.items():
            weight, bias, mean, var = (tensors.get(f"{name}.{k}".lstrip(".")) for k in _KEYS)
            states.append((layer, NormState(weight, bias, mean, var)))
        return [*states, *self._copied(CopiedRows({n: tensors[n] for n in self.copies.names}))]

    def blended(self, alpha: Tensor) -> list[tuple[nn.Module, State]]:
        """Return what :meth:`states` does, a blend of the first tasks', times alpha (tasks,)."""
        states = self._with_tables({name: table.blended(alpha) for name, table in self._rows()})
        return [*states, *self._copied(self.copies.blended(alpha))]

    def _copied(self, rows: CopiedRows) -> list[tuple[nn.Module, State]]:
        return [(self.copies, rows)] if rows.values else []

    def _with_tables(self, rows: Mapping[str, NormState]) -> list[tuple[nn.Module, NormState]]:
        states = {name: _own(layer) for name, layer in self._layers.items()}
        states |= {name: NormState(*states[name][:2]) for name in self._batch}
        states |= {name: _over(states[name], row) for name, row in rows.items()}
        return [(layer, states[name]) for name, layer in self._layers.items()]

    @property
    def mixes_rows(self) -> bool:
        """Whether a batch norm in training mode would use the statistics of a batch."""
        return any(
            layer.training and (layer.running_mean is None or name in self._tabled + self._batch)
            for name, layer in self._layers.items()
            if isinstance(layer, _BatchNorm)
        )

    def install(self, net: nn.Module, task: int) -> None:
        """Give a copy of the network the normalisation of a task."""
        for name, table in self._rows():
            table.install(net.get_submodule(name), task)
        self.copies.install(net, task)
        for name in self._batch:
            layer = net.get_submodule(name)
            if isinstance(layer, _NormBase):
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None
