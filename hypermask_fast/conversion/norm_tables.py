"""Normalisation of a converted network: statistics of the batch, of each task, or frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hypermask_fast.errors import ConfigError
from hypermask_fast.layers.norms import NormState, TaskNorm
from hypermask_fast.optim.rows import take_rows
from hypermask_fast.tables import add_rows

_KEYS = ("weight", "bias", "running_mean", "running_var")


def _own(layer: nn.Module) -> NormState:
    weight, bias, mean, var = (getattr(layer, key, None) for key in _KEYS)
    return NormState(weight, bias, mean, var)


class NormTable(nn.Module):
    """The states of one normalisation layer, a row a task; each starts as the layer's own.

    Args:
        name: Of the layer, for errors.
        layer: The layer, whose parameters and statistics are copied ``capacity`` times.
        capacity: Rows.
        affine: Whether the rows hold parameters beside the statistics. Default True.

    Raises:
        ConfigError: The layer is a batch norm without running statistics, or averages them
            cumulatively (momentum None), which a row a task cannot hold.
    """

    def __init__(self, name: str, layer: TaskNorm, capacity: int, *, affine: bool = True) -> None:
        super().__init__()
        if isinstance(layer, _BatchNorm) and (layer.running_mean is None or layer.momentum is None):
            raise ConfigError(
                f"{name} is a {layer.plain.__name__} with track_running_stats="
                f"{layer.track_running_stats} and momentum={layer.momentum}, and bn='per_task' "
                "keeps running statistics with a momentum; build it with both, or use bn='batch'"
            )
        for key, value in zip(_KEYS, _own(layer)[:4], strict=True):
            if value is None or (isinstance(value, nn.Parameter) and not affine):
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
    """All normalisation layers of a converted network.

    Args:
        net: The converted network; layers that its conversion froze stay frozen in every mode.
        mode: "batch": shared parameters and the batch's statistics, in training and evaluation.
            "per_task": a row of a :class:`NormTable` for each task. "frozen": as they are.
        capacity: Rows.
        affine: As in :class:`NormTable`.

    Raises:
        ConfigError: A layer cannot have rows; see :class:`NormTable`.
    """

    def __init__(self, net: nn.Module, mode: str, capacity: int, *, affine: bool = True) -> None:
        super().__init__()
        # In a dict, not registered: the layers belong to the network.
        self._layers = {name: m for name, m in net.named_modules() if isinstance(m, TaskNorm)}
        free = [name for name, layer in self._layers.items() if not layer.frozen]
        self._tabled = free if mode == "per_task" else []
        self._batch = free if mode == "batch" else []
        self.tables = nn.ModuleList(
            NormTable(name, self._layers[name], capacity, affine=affine) for name in self._tabled
        )

    def parameter_names(self) -> list[str]:
        """Return the names of the layers' own parameters in the network."""
        return [
            f"{name}.{key}"
            for name, layer in self._layers.items()
            for key, _ in layer.named_parameters(recurse=False)
        ]

    def _rows(self) -> Iterator[tuple[str, NormTable]]:
        for name, table in zip(self._tabled, self.tables, strict=True):
            assert isinstance(table, NormTable)
            yield name, table

    def grow(self, capacity: int) -> None:
        """Add rows to every table."""
        for name, table in self._rows():
            table.grow(self._layers[name], capacity)

    def states(self, task: int, *, learning: bool) -> list[tuple[TaskNorm, NormState]]:
        """Return each layer with its state for a task.

        Args:
            task: The row.
            learning: Whether a forward in training mode may move the task's running statistics.
        """
        return self._with_tables({name: t.state(task, learning) for name, t in self._rows()})

    def blended(self, alpha: Tensor) -> list[tuple[TaskNorm, NormState]]:
        """Return each layer with a blend of the first tasks' states, times alpha (tasks,)."""
        return self._with_tables({name: table.blended(alpha) for name, table in self._rows()})

    def _with_tables(self, rows: Mapping[str, NormState]) -> list[tuple[TaskNorm, NormState]]:
        states = {name: _own(layer) for name, layer in self._layers.items()}
        states |= {name: NormState(*states[name][:2]) for name in self._batch}
        states |= rows
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
        for name in self._batch:
            layer = net.get_submodule(name)
            if isinstance(layer, _BatchNorm):
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None
