"""A converted network: its parameters, and forwards with other weights in their place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from hypermask_fast.conversion.convert import convert
from hypermask_fast.conversion.copies import CopiedRows
from hypermask_fast.conversion.entries import PER_TASK, SHARED, Entry, manifest
from hypermask_fast.conversion.norm_tables import State
from hypermask_fast.conversion.patterns import Patterns
from hypermask_fast.conversion.places import Place
from hypermask_fast.conversion.report import table, tied_names
from hypermask_fast.conversion.structure import Structure
from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.layers.dropouts import TaskDropout
from hypermask_fast.layers.general import SOURCE
from hypermask_fast.layers.masked import MaskedLayer, Replacement
from hypermask_fast.layers.norms import NormState, TaskNorm
from hypermask_fast.layers.stand_ins import Converted, Forward

_EXEMPT = "exempt: last bias"


class ConvertedNetwork:
    """The parameters of a network, and the means to run it with other weights in their place.

    It converts the network in place and holds it; it has no parameters of its own.

    Args:
        net: The network.
        exclude, shared, per_task, generated, shares: As in
            :func:`hypermask_fast.conversion.convert.convert`.
        source: What the layers' repr shows as the source of their masks.

    Attributes:
        net: The network.
        entries: All its parameters.
        owners: For each of :attr:`tensors`, the module that has it, and its name there.
        copied: Names of the parameters, but for normalisation's, that tasks have copies of.
        shared: Those that are trained for all tasks as they are.
        last: Name of the layer that runs last; None before :meth:`find_last`.
        exempt: Name of the bias that is not masked; None before it is known, or if there is none.
        traced: Whether ``exempt`` is known.

    Raises:
        ConfigError: The network cannot be converted.
    """

    def __init__(
        self,
        net: nn.Module,
        exclude: Patterns,
        source: str,
        *,
        shared: Patterns = (),
        per_task: Patterns = (),
        generated: bool = False,
        shares: bool = False,
    ) -> None:
        parts = convert(
            net, exclude, shared=shared, per_task=per_task, generated=generated, shares=shares
        )
        self.net = net
        self.entries = parts.entries
        self.last: str | None = None
        self.exempt: str | None = None
        self.traced = False
        self.shared = [entry.name for entry in parts.entries if entry.reason == SHARED]
        self._places = parts.to_replace(net)
        self._norms: dict[nn.Module, str]
        self._norms = {m: name for name, m in net.named_modules() if isinstance(m, TaskNorm)}
        of_places = {name for place in self._places for name in place.keys.values()}
        copied = [entry.name for entry in parts.entries if entry.reason == PER_TASK]
        self.copied = [name for name in copied if name in of_places]
        for place in self._places:
            key = "mask_source" if isinstance(place.module, MaskedLayer) else SOURCE
            vars(place.module)[key] = source
        self._tied = tied_names(net)
        self._plain: dict[nn.Module, object]
        self._plain = dict.fromkeys(m for m in net.modules() if isinstance(m, Converted))
        self._dropouts = [m for m in self._plain if isinstance(m, TaskDropout)]
        self._structure = Structure(net)
        owners = zip(parts.entries, parts.places, strict=True)
        self.owners = [places[0] for entry, places in owners if entry.offset >= 0]

    @property
    def tensors(self) -> list[Entry]:
        """The parameters that are replaced, in order."""
        return [entry for entry in self.entries if entry.offset >= 0]

    @property
    def size(self) -> int:
        """N, the number of elements of :attr:`tensors`."""
        return sum(entry.size for entry in self.tensors)

    def check(self) -> None:
        """Raise RuntimeError where the network is not as the conversion left it."""
        self._structure.check()

    def weights(self) -> list[Tensor]:
        """Return the present values of :attr:`tensors`.

        Raises:
            RuntimeError: One has another shape than when the network was converted, or the network
                was changed.
        """
        weights: list[Any] = [module._parameters.get(key) for module, key in self.owners]
        for entry, weight in zip(self.tensors, weights, strict=True):
            if weight is None or weight.shape != entry.shape:
                self._structure.check()
                now = "is None" if weight is None else f"has shape {tuple(weight.shape)}"
                raise RuntimeError(
                    f"{entry.name} {now} and had {entry.shape} when the network was "
                    "converted; build a new learner for another shape"
                )
        return weights

    @torch.no_grad()
    def flat_weights(self) -> Tensor:
        """Return a copy of the present values of :attr:`tensors`, (N,)."""
        return torch.cat([w.flatten() for w in self.weights()])

    def shared_weights(self) -> list[Tensor]:
        """Return the parameters that are trained for all tasks as they are."""
        return [self.net.get_parameter(name) for name in self.shared]

    def check_dropouts(self) -> None:
        """Raise ConfigError where a dropout layer cannot be turned off in a forward."""
        for name, module in self.net.named_modules():
            if isinstance(module, _DropoutNd) and not isinstance(module, TaskDropout):
                raise ConfigError(
                    f"{name} is a {type(module).__name__}, which cannot be turned off in a "
                    "forward; use a dropout layer of torch.nn, or dropout='always'"
                )

    def set_exempt(self, name: str | None) -> None:
        """Choose the bias that is not masked.

        Raises:
            ConfigError: It has no mask.
        """
        names = [entry.name for entry in self.tensors]
        if name is not None and name not in names:
            raise ConfigError(
                f"exempt is {name!r}{nearest(name, names)}; give a masked parameter of the network"
            )
        for i, entry in enumerate(self.entries):
            if entry.offset >= 0:
                reason = _EXEMPT if entry.name == name else ""
                self.entries[i] = replace(entry, masked=not reason, reason=reason)
        self.exempt, self.traced = name, True

    def find_exempt(self, run: Callable[[], object]) -> None:
        """Exempt the bias of the masked layer that runs last in ``run()``; see :meth:`find_last`.

        Raises:
            ConfigError: None runs.
        """
        last = self.find_last(run)
        place = next(place for place in self._places if place.name == last)
        bias = place.keys.get("bias")
        self.set_exempt(bias if bias in {entry.name for entry in self.tensors} else None)

    def find_last(self, run: Callable[[], object]) -> str:
        """Note and return the name of the layer whose weights are read last in ``run()``.

        It is a linear or convolutional layer, where one runs. Parameters that are not read are
        warned of.

        Raises:
            ConfigError: None is read.
        """
        order: list[Place] = []
        read: set[tuple[str, str]] = set()

        def note(place: Place, key: str) -> None:
            order.append(place)
            read.add((place.name, key))

        # Own weights, whatever another thread runs the network with.
        noted = {place.module: place.noted(note) for place in self._places}
        with torch.no_grad(), Forward({**self._plain, **noted}):
            run()
        if not order:
            raise ConfigError(
                f"no masked parameter of {type(self.net).__name__} was read in a forward, so masks "
                "would have no effect; read them as attributes of their modules"
            )
        idle = [name for place in self._places for name in place.unread(read)]
        if idle:
            warnings.warn(
                f"{', '.join(idle)} did not run in a forward, so masks have no effect there; pass "
                f"exclude={idle} to leave {'them' if len(idle) > 1 else 'it'} out",
                stacklevel=2,
            )
        layers = [place for place in order if place.is_layer]
        self.last = (layers or order)[-1].name
        return self.last

    @contextmanager
    def applied(
        self,
        weights: Mapping[str, Tensor],
        norms: Iterable[tuple[nn.Module, State]] = (),
        *,
        dropout: bool = True,
        trains: bool = False,
    ) -> Iterator[nn.Module]:
        """Run the network with other weights inside a ``with`` block.

        Args:
            weights: What stands in for each of :attr:`tensors`, by name.
            norms: What stands in for normalisation layers' states, and the task's copies.
            dropout: False turns dropout layers off, whatever their mode.
            trains: Refuse layers that run without gradients, for they would not learn.

        Raises:
            ValueError: The names are not those of the tensors.
            RuntimeError: The network was unconverted, or changed since it was converted.
        """
        names = {entry.name for entry in self.tensors}
        if weights.keys() != names:
            raise ValueError(
                f"weights lack {sorted(names - weights.keys())} and have "
                f"{sorted(weights.keys() - names)} too many; give those of task_weights()"
            )
        states = {}
        for layer, state in norms:
            if isinstance(state, CopiedRows):
                weights = {**weights, **state.values}
            else:
                states[layer] = self._generated(layer, state, weights)
        stand_ins = {place.module: place.stand_in(weights) for place in self._places}
        with self._running({**stand_ins, **states}, dropout=dropout, trains=trains) as net:
            yield net

    def _generated(
        self, norm: nn.Module, state: NormState, weights: Mapping[str, Tensor]
    ) -> NormState:
        """Return a normalisation layer's state with the affine parameters among ``weights``."""
        prefix = f"{self._norms[norm]}.".lstrip(".")
        return state._replace(
            weight=weights.get(f"{prefix}weight", state.weight),
            bias=weights.get(f"{prefix}bias", state.bias),
        )

    @contextmanager
    def running(
        self, layers: Mapping[str, Replacement], *, dropout: bool = True
    ) -> Iterator[nn.Module]:
        """Run the network with what stands in for layers' weights inside a ``with`` block.

        Args:
            layers: By the name of each layer that is not to run with its own weights.
            dropout: As in :meth:`applied`.

        Raises:
            RuntimeError: The network was unconverted, or changed since it was converted.
        """
        stand_ins = {p.module: layers[p.name] for p in self._places if p.name in layers}
        with self._running(stand_ins, dropout=dropout, trains=False) as net:
            yield net

    @contextmanager
    def _running(
        self, stand_ins: Mapping[nn.Module, object], *, dropout: bool, trains: bool
    ) -> Iterator[nn.Module]:
        self._structure.check()
        found = {**self._plain, **stand_ins}
        if not dropout:
            found.update(dict.fromkeys(self._dropouts, True))
        with Forward(found) as forward:
            yield self.net
        if trains and forward.without_graph:
            self._refuse_without_graph(forward.without_graph)

    def _refuse_without_graph(self, without: Sequence[nn.Module]) -> None:
        found = {id(layer) for layer in without}
        names = [place.name for place in self._places if id(place.module) in found]
        if names:
            raise RuntimeError(
                f"{names[0]} ran without gradients in a forward that is to be learned from, by "
                "torch.no_grad() or re-entrant activation checkpointing in the network; use "
                f"checkpoint(..., use_reentrant=False), or build the learner with exclude={names}"
            )

    def manifest(self) -> list[dict[str, Any]]:
        """Return name, shape, offset, masked and reason of every parameter, for JSON."""
        return manifest(self.entries)

    def table(self, reasons: Mapping[str, str]) -> list[str]:
        """Return a line for each parameter (name, shape, size, why it is not masked), and a sum.

        Args:
            reasons: What to print in place of a reason.
        """
        return table(self.entries, self._tied, reasons)
