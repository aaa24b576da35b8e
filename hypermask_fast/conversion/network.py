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
from hypermask_fast.conversion.entries import Entry, manifest
from hypermask_fast.conversion.structure import Structure
from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.layers.dropouts import TaskDropout
from hypermask_fast.layers.masked import MaskedLayer, MaskedWeights, Replacement
from hypermask_fast.layers.norms import NormState, TaskNorm
from hypermask_fast.layers.stand_ins import Forward, TaskLayer

_EXEMPT = "exempt: last bias"


def _stand_in(name: str, layer: MaskedLayer, weights: Mapping[str, Tensor]) -> MaskedWeights:
    prefix = f"{name}." if name else ""
    bias = layer.bias
    return MaskedWeights(
        weights.get(f"{prefix}weight", layer.weight),
        None if bias is None else weights.get(f"{prefix}bias", bias),
    )


class ConvertedNetwork:
    """The parameters of a network, and the means to run it with other weights in their place.

    It converts the network in place and holds it; it has no parameters of its own.

    Args:
        net: The network.
        exclude: As in :func:`hypermask_fast.conversion.convert.convert`.
        source: What the layers' repr shows as the source of their masks.
        generated: As in :func:`hypermask_fast.conversion.entries.entries_of`. Default False.

    Attributes:
        net: The network.
        entries: All its parameters.
        owners: For each of :attr:`tensors`, the module that has it, and its name there.
        last: Name of the layer that runs last; None before :meth:`find_last`.
        exempt: Name of the bias that is not masked; None before it is known, or if there is none.
        traced: Whether ``exempt`` is known.

    Raises:
        ConfigError: The network cannot be converted.
    """

    def __init__(
        self, net: nn.Module, exclude: Sequence[str], source: str, *, generated: bool = False
    ) -> None:
        self.entries = convert(net, tuple(exclude), generated=generated)
        self.net = net
        self.last: str | None = None
        self.exempt: str | None = None
        self.traced = False
        self._layers = [(name, m) for name, m in net.named_modules() if isinstance(m, MaskedLayer)]
        self._plain: dict[nn.Module, object]
        self._plain = dict.fromkeys(m for m in net.modules() if isinstance(m, TaskLayer))
        self._norms = {m: name for name, m in net.named_modules() if isinstance(m, TaskNorm)}
        self._dropouts = [m for m in self._plain if isinstance(m, TaskDropout)]
        self._structure = Structure(net)
        for _, layer in self._layers:
            layer.mask_source = source
        self.owners = [
            (net.get_submodule(entry.name.rpartition(".")[0]), entry.name.rpartition(".")[2])
            for entry in self.tensors
        ]

    @property
    def tensors(self) -> list[Entry]:
        """The parameters that are replaced, in order."""
        return [entry for entry in self.entries if entry.offset >= 0]

    @property
    def size(self) -> int:
        """N, the number of elements of :attr:`tensors`."""
        return sum(entry.size for entry in self.tensors)

    def weights(self) -> list[Tensor]:
        """Return the present values of :attr:`tensors`.

        Raises:
            RuntimeError: One has another shape than when the network was converted.
        """
        weights = [getattr(module, key) for module, key in self.owners]
        for entry, weight in zip(self.tensors, weights, strict=True):
            if weight.shape != entry.shape:
                raise RuntimeError(
                    f"{entry.name} has shape {tuple(weight.shape)} and had {entry.shape} when the "
                    "network was converted; build a new learner for another shape"
                )
        return weights

    @torch.no_grad()
    def flat_weights(self) -> Tensor:
        """Return a copy of the present values of :attr:`tensors`, (N,)."""
        return torch.cat([w.flatten() for w in self.weights()])

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
        bias = f"{self.find_last(run)}.bias".lstrip(".")
        self.set_exempt(bias if bias in {entry.name for entry in self.tensors} else None)

    def find_last(self, run: Callable[[], object]) -> str:
        """Note and return the name of the layer that runs last in ``run()``.

        Layers that do not run are warned of.

        Raises:
            ConfigError: None runs.
        """
        order: list[str] = []
        forward = Forward(self._plain)

        def note(name: str) -> None:
            if forward.is_here():
                order.append(name)

        hooks = [
            layer.register_forward_pre_hook(lambda *_, name=name: note(name))
            for name, layer in self._layers
        ]
        try:
            # Plain layers, whatever another thread runs them with.
            with torch.no_grad(), forward:
                run()
        finally:
            for hook in hooks:
                hook.remove()
        if not order:
            raise ConfigError(
                f"no masked layer of {type(self.net).__name__} ran in a forward, so its masks "
                "would have no effect; call the layers, not functions of their weights"
            )
        idle = [name for name, _ in self._layers if name not in order]
        if idle:
            warnings.warn(
                f"{', '.join(idle)} did not run in a forward, so masks have no effect there; pass "
                f"exclude={idle} to leave {'them' if len(idle) > 1 else 'it'} out",
                stacklevel=2,
            )
        self.last = order[-1]
        return self.last

    @contextmanager
    def applied(
        self,
        weights: Mapping[str, Tensor],
        norms: Iterable[tuple[TaskNorm, NormState]] = (),
        *,
        dropout: bool = True,
    ) -> Iterator[nn.Module]:
        """Run the network with other weights inside a ``with`` block.

        Args:
            weights: What stands in for each of :attr:`tensors`, by name.
            norms: What stands in for normalisation layers' states.
            dropout: False turns dropout layers off, whatever their mode.

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
        layers = {name: _stand_in(name, layer, weights) for name, layer in self._layers}
        states = [(norm, self._generated(norm, state, weights)) for norm, state in norms]
        with self.running(layers, states, dropout=dropout) as net:
            yield net

    def _generated(
        self, norm: TaskNorm, state: NormState, weights: Mapping[str, Tensor]
    ) -> NormState:
        """Return a normalisation layer's state with the affine parameters among ``weights``."""
        prefix = f"{self._norms[norm]}.".lstrip(".")
        return state._replace(
            weight=weights.get(f"{prefix}weight", state.weight),
            bias=weights.get(f"{prefix}bias", state.bias),
        )

    @contextmanager
    def running(
        self,
        layers: Mapping[str, Replacement],
        norms: Iterable[tuple[TaskNorm, NormState]] = (),
        *,
        dropout: bool = True,
    ) -> Iterator[nn.Module]:
        """Run the network with what stands in for layers' weights inside a ``with`` block.

        Args:
            layers: By the name of each layer that is not to run with its own weights.
            norms, dropout: As in :meth:`applied`.

        Raises:
            RuntimeError: The network was unconverted, or changed since it was converted.
        """
        self._structure.check()
        stand_ins: dict[nn.Module, object] = {
            **self._plain,
            **{layer: layers[name] for name, layer in self._layers if name in layers},
            **dict(norms),
        }
        if not dropout:
            stand_ins.update(dict.fromkeys(self._dropouts, True))
        with Forward(stand_ins):
            yield self.net

    def manifest(self) -> list[dict[str, Any]]:
        """Return name, shape, offset, masked and reason of every parameter, for JSON."""
        return manifest(self.entries)

    def table(self, reasons: Mapping[str, str]) -> list[str]:
        """Return a line for each parameter (name, shape, size, why it is not masked), and a sum.

        Args:
            reasons: What to print in place of a reason.
        """
        rows = [
            (
                entry.name,
                "x".join(map(str, entry.shape)),
                f"{entry.size:,}",
                reasons.get(entry.reason, entry.reason) or "masked",
            )
            for entry in self.entries
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        masked = sum(entry.size for entry in self.entries if entry.masked)
        total = sum(entry.size for entry in self.entries)
        return [
            *(
                f"{name:<{widths[0]}}  {shape:>{widths[1]}}  {size:>{widths[2]}}  {status}"
                for name, shape, size, status in rows
            ),
            f"{masked:,} of {total:,} target parameters are masked",
        ]
