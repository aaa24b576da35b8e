"""The target network of boxes of weights: by interval arithmetic, or by three passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from hypermask_fast.conversion.network import ConvertedNetwork
from hypermask_fast.conversion.norm_tables import State
from hypermask_fast.conversion.patterns import Patterns
from hypermask_fast.errors import ConfigError, shown
from hypermask_fast.layers.intervals import Box, Interval, IntervalWeights, exchanged
from hypermask_fast.layers.masked import MASKED_LAYERS
from hypermask_fast.layers.norms import TASK_NORMS, NormState
from hypermask_fast.methods.batches import run
from hypermask_fast.methods.inputs import Batch, Inputs

_FALLING: tuple[type[nn.Module], ...] = (
    *(nn.GELU, nn.Hardshrink, nn.Hardswish, nn.LogSoftmax, nn.Mish, nn.SiLU, nn.Softmax),
    *(nn.Softmin, nn.Tanhshrink, nn.MultiheadAttention, nn.Bilinear, nn.PReLU, nn.RReLU),
    *(nn.LocalResponseNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, *TASK_NORMS),
)
"""Layers that may fall where an input rises, or look at several rows."""


def check_monotone(net: nn.Module, exclude: Patterns) -> None:
    """Raise ConfigError where bounds do not go through a layer of a network, or layers are plain.

    What its forward does beside its layers is not looked at.
    """
    if exclude:
        raise ConfigError(
            f"exclude is {exclude!r} and arithmetic='interval' has no bounds for layers that stay "
            "plain; use arithmetic='three_pass'"
        )
    for name, module in net.named_modules():
        layers = (*MASKED_LAYERS, *MASKED_LAYERS.values())
        other = type(module) not in layers and any(True for _ in module.parameters(recurse=False))
        if other or isinstance(module, _FALLING):
            raise ConfigError(
                f"{name or 'the network itself'} is a {type(module).__name__}, which bounds do not "
                "go through; use arithmetic='three_pass', or linear and convolutional layers, ReLU "
                "and no normalisation"
            )


def weights_of(network: ConvertedNetwork, flat: Tensor) -> dict[str, Tensor]:
    """Return numbers (N,) as the network's tensors, by name."""
    tensors = network.tensors
    parts = flat.split([entry.size for entry in tensors])
    return {e.name: part.view(e.shape) for e, part in zip(tensors, parts, strict=True)}


class BoxNetwork:
    """Runs a converted network with boxes in place of its weights.

    Args:
        network: The network.
        by_passes: Three passes whose outputs are exchanged, in place of interval arithmetic.
    """

    def __init__(self, network: ConvertedNetwork, *, by_passes: bool) -> None:
        self._network, self._by_passes = network, by_passes

    def bounds(self, emitted: Tensor) -> dict[str, Interval]:
        """Return the bounds of the tensors by name.

        Args:
            emitted: (2 N,), the weights' centers and radii.
        """
        return {name: box.bounds() for name, box in self._by_name(emitted).items()}

    def _by_name(self, emitted: Tensor) -> dict[str, Box]:
        tensors = self._network.tensors
        parts = emitted.split([entry.size for entry in tensors] * 2)
        halves = zip(tensors, parts[: len(tensors)], parts[len(tensors) :], strict=True)
        return {e.name: Box(c.view(e.shape), r.view(e.shape)) for e, c, r in halves}

    def outputs(
        self,
        x: Batch,
        emitted: Tensor,
        norms: Sequence[tuple[nn.Module, State]],
        compiled: Callable[..., Any] | None = None,
        known: tuple[Any, ...] | None = None,
    ) -> Interval:
        """Return low, mid and up (batch, outputs).

        Args:
            x: Inputs (batch, ...).
            emitted: As in :meth:`bounds`.
            norms: What stands in for normalisation layers' states; running statistics move with
                the middle pass alone.
            compiled: Runs the network. Default: it is called.
            known: As in :func:`hypermask_fast.methods.batches.run`.
        """
        if not self._by_passes:
            if isinstance(x, Inputs):
                raise ConfigError(
                    f"arithmetic='interval' takes one tensor and was given {x}; use "
                    "arithmetic='three_pass'"
                )
            layers = self._layers(self._by_name(emitted))
            with self._network.running(layers, dropout=False) as net:
                packed = run(compiled or net, x.repeat(3, *[1] * (x.dim() - 1)), known)
            return Interval(*packed.chunk(3))
        passes, bounds = [], self.bounds(emitted)
        for end in range(3):
            states = norms if end == 1 else [(norm, _still(state)) for norm, state in norms]
            weights = {name: each[end] for name, each in bounds.items()}
            with self._network.applied(weights, states) as net:
                passes.append(run(compiled or net, x, known))
        if not all(isinstance(each, Tensor) for each in passes):
            raise ConfigError(
                f"the network puts out {shown(passes[1])}, which has no bounds; build "
                "HyperInterval over a network that puts out a tensor"
            )
        return exchanged(*passes)

    def _layers(self, boxes: dict[str, Box]) -> dict[str, IntervalWeights]:
        owners: Iterable[str] = dict.fromkeys(name.rpartition(".")[0] for name in boxes)
        return {
            owner: IntervalWeights(
                boxes[f"{owner}.weight".lstrip(".")], boxes.get(f"{owner}.bias".lstrip("."))
            )
            for owner in owners
        }


def _still(state: State) -> State:
    """Return a state whose running statistics a forward in training mode does not move."""
    if not isinstance(state, NormState) or not state.learning:
        return state
    if state.running_mean is None or state.running_var is None:
        return state
    return state._replace(
        running_mean=state.running_mean.clone(), running_var=state.running_var.clone()
    )


class Exchanged(nn.Module):
    """A network whose outputs are the middle of three passes after their exchanges.

    Args:
        boxes: Of a converted network.
        emitted: (2 N,), the weights' centers and radii.
        norms: What stands in for normalisation layers' states.
    """

    def __init__(
        self, boxes: BoxNetwork, emitted: Tensor, norms: Sequence[tuple[nn.Module, State]]
    ) -> None:
        super().__init__()
        self._boxes, self._emitted, self._norms = boxes, emitted, norms

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x = args[0] if len(args) == 1 and not kwargs else Inputs(args, kwargs)
        return self._boxes.outputs(x, self._emitted, self._norms).mid
