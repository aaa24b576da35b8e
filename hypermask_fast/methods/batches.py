"""Batches through a learner's network: their checks, other weights, what the last layer reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.optimizer import Optimizer
from torch.utils.data import DataLoader, Dataset

from hypermask_fast.errors import shown
from hypermask_fast.methods.inputs import Batch, Inputs, call, signature

_Function = TypeVar("_Function", bound=Callable[..., Any])


_OF_INPUTS = (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError)
_LOADERS = (DataLoader, Dataset)
_AS_TENSOR = "torch.as_tensor makes one of an array or a list"


def check_devices(device: torch.device, **values: Batch) -> None:
    """Raise TypeError where a value is no tensor, ValueError if elsewhere or without rows.

    Of :class:`Inputs` the first tensor has rows, and all are on the device.
    """
    for name, value in values.items():
        if isinstance(value, Inputs):
            first, *others = value.tensors().items()
            check_devices(device, **{f"{name}[{first[0]}]": first[1]})
            for place, other in others:
                if other.dim():
                    check_devices(device, **{f"{name}[{place}]": other})
            continue
        if not isinstance(value, Tensor):
            how = "each of its batches has one" if isinstance(value, _LOADERS) else _AS_TENSOR
            raise TypeError(f"{name} are a {type(value).__name__}; give a tensor: {how}")
        if value.device != device:
            raise ValueError(
                f"{name} are on {value.device} and the learner on {device}; move them to one device"
            )
        if not value.dim():
            raise ValueError(f"{name} have shape (); give a batch, (batch, ...)")


def check_labels(x: Batch, y: Tensor) -> None:
    """Raise ValueError where there is not one int64 label for each row."""
    if y.shape != (len(x),) or y.dtype != torch.int64:
        shape = x if isinstance(x, Inputs) else f"inputs of shape {tuple(x.shape)}"
        raise ValueError(
            f"labels are {y.dtype} of shape {tuple(y.shape)} for {shape}; give int64 labels, one "
            "for each row, or a criterion that takes others"
        )


def check_rows(x: Batch) -> None:
    """Raise ValueError where a batch to learn from has no row."""
    if not len(x):
        shape = x if isinstance(x, Inputs) else f"inputs have shape {tuple(x.shape)}"
        raise ValueError(f"{shape}; a loss needs at least one row")


def check_weights(weights: Mapping[str, Tensor] | None) -> None:
    """Raise TypeError where weights to use are no tensors by name."""
    if weights is None:
        return
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights are {shown(weights)}; give those of task_weights()")
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"the weight {name!r} is {shown(value)}; give a tensor, as task_weights() does"
            )


def check_optimizers(optimizers: Mapping[str, Optimizer]) -> None:
    """Raise TypeError where the optimizers of a step are no optimizers by name."""
    if not isinstance(optimizers, Mapping):
        raise TypeError(
            f"optimizers are {shown(optimizers)}; give a dict of them by name, such as "
            '{"main": optimizer}'
        )
    for name, optimizer in optimizers.items():
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"the optimizer {name!r} is {shown(optimizer)}; give a torch.optim.Optimizer"
            )


def run(
    net: Callable[..., Any],
    x: Batch,
    known: tuple[Any, ...] | None = None,
    rows: int | None = None,
) -> Any:
    """Return ``net(x)``, or what it makes of several inputs.

    Args:
        net: The network.
        x: Its inputs.
        known: The :func:`signature` of inputs that ran through it; of such, errors come as they
            are.
        rows: Run only the first ones. Default: all.

    Raises:
        ValueError: Inputs of this shape and dtype do not run through it.
    """
    try:
        if rows is None:
            return call(net, x)
        return call(net, x.head(rows) if isinstance(x, Inputs) else x[:rows])
    except _OF_INPUTS as error:
        _misfit(net, x, known, error)


def _misfit(
    net: Callable[..., Any], x: Batch, known: tuple[Any, ...] | None, error: Exception
) -> NoReturn:
    # Subclasses tell of something else: of memory, of the device, or what a user's own code says.
    if type(error) not in _OF_INPUTS or signature(x) == known:
        raise error
    reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
    inner = getattr(net, "net", None) or getattr(net, "_module", None) or net
    name = type(inner).__name__
    given = f"a batch of {x}"
    if not isinstance(x, Inputs):
        given = f"an input of shape {tuple(x.shape)} and {x.dtype}"
    raise ValueError(
        f"{given} does not run through {name} ({reason}); give inputs of the shape and dtype that "
        "the network takes"
    ) from error


def random_state_kept(function: _Function) -> _Function:
    """Make a function that raises leave the global random state as it was."""

    @wraps(function)
    def kept(*args: Any, **kwargs: Any) -> Any:
        states = torch.get_rng_state()
        on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        try:
            return function(*args, **kwargs)
        except BaseException:
            torch.set_rng_state(states)
            if on_cuda is not None:
                torch.cuda.set_rng_state_all(on_cuda)
            raise

    return kept  # type: ignore[return-value]


class WithWeights(nn.Module):
    """Calls a network with other weights, by name, in place of its own."""

    def __init__(self, net: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.net, self._weights = net, dict(weights)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.net, self._weights, args, kwargs, strict=False)


def sum_of(weights: Iterable[Mapping[str, Tensor]], alpha: Tensor) -> dict[str, Tensor]:
    """Return the sum of weights by name, each set of them times its factor of alpha."""
    total: dict[str, Tensor] = {}
    for factor, each in zip(alpha, weights, strict=True):
        for name, value in each.items():
            total[name] = total[name] + factor * value if name in total else factor * value
    return total


def read_by_last_layer(net: nn.Module, run: Callable[[], object]) -> Tensor:
    """Return what the module with parameters of its own that runs last in ``run()`` is given."""
    read: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, named: read.extend([*args, *named.values()][:1]), with_kwargs=True
        )
        for module in net.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return read[-1]
