"""Tensors of a masked layer, and stand-ins for the tuner, for the tests of both masked kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.kernels import tuning
from hypermask_fast.kernels.tuning import Config, forced
from tests.support.kernel_checks import rounding_bound

FLOAT, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
BIAS = ("none", "unmasked", "masked")


class Layer(NamedTuple):
    """The tensors of ``reference.masked_linear`` and ``reference.masked_conv2d``."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    weight_logits: Tensor
    bias_logits: Tensor | None
    weight_threshold: Tensor | None
    bias_threshold: Tensor | None


def some(*shape: int, dtype: torch.dtype = FLOAT) -> Tensor:
    return torch.randn(*shape).to(dtype)


def some_logits(*shape: int, dtype: torch.dtype = FLOAT) -> Tensor:
    """Logits with no mask value near a half, the threshold: rounding may not remove an entry."""
    z = torch.randn(*shape)
    return torch.where((z.tanh().abs() - 0.5).abs() < 0.02, 2 * z, z).to(dtype)


def layer_of_shapes(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    dtype: torch.dtype = FLOAT,
    weight: torch.dtype | None = None,
    logits: torch.dtype = FLOAT,
    *,
    bias: str = "masked",
    threshold: bool = True,
    device: torch.device,
) -> Layer:
    """A layer whose weights have x's dtype where theirs is None, and whose bias is in ``BIAS``."""
    half = torch.tensor(0.5, dtype=logits) if threshold else None
    masked = bias == "masked"
    layer = Layer(
        some(*x_shape, dtype=dtype),
        some(*weight_shape, dtype=weight or dtype),
        None if bias == "none" else some(weight_shape[0], dtype=weight or dtype),
        some_logits(*weight_shape, dtype=logits),
        some_logits(weight_shape[0], dtype=logits) if masked else None,
        half,
        half if masked else None,
    )
    return Layer(*(None if t is None else t.to(device) for t in layer))


def double(layer: Layer) -> Layer:
    return Layer(*(None if t is None else t.double() for t in layer))


def gradients_of(
    function: Callable[..., Tensor], layer: Layer, grad: Tensor, **options: Any
) -> list[Tensor | None]:
    """y and the gradients of x, W, b, z and z_b, of the reference in the dtypes given."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in layer[:5]]
    # Of no effect but where x is narrower than W.
    dtype = layer.x.dtype if layer.x.dtype in (HALF, BRAIN) else BRAIN
    with torch.autocast(grad.device.type, dtype, enabled=layer.x.dtype != layer.weight.dtype):
        y = function(*leaves, *layer[5:], **options)
    y.backward(grad.to(y.dtype))
    return [y.detach(), *(None if t is None else t.grad for t in leaves)]


def _changed(layer: Layer, change: Callable[[Tensor], Tensor], mask: float | None) -> Layer:
    """A layer of changed x, W and b, whose logits all are ``mask``, or with the masks it has."""
    tensors = double(layer)
    x, weight, bias = (None if t is None else change(t) for t in tensors[:3])
    if mask is None:
        return Layer(x, weight, bias, *tensors[3:])
    logits = (None if t is None else torch.full_like(t, mask) for t in tensors[3:5])
    return Layer(x, weight, bias, *logits, None, None)


def bounds_of(
    function: Callable[..., Tensor], layer: Layer, grad: Tensor, **options: Any
) -> list[Tensor | None]:
    """How far the results of :func:`gradients_of` may be, by the magnitudes of their terms."""

    def results(change: Callable[[Tensor], Tensor], mask: float | None) -> list[Tensor | None]:
        given = _changed(layer, change, mask), change(grad.double())
        return gradients_of(function, *given, **options)

    # Masks of 1 for y and the gradients of x, W and b; a slope of 1 for those of logits, as 1 - m^2
    # is off by a part of 1, not of itself, and m^2 is added. A sum of ones is its own length.
    one, steep = 30.0, 1e-30
    sizes = [*results(Tensor.abs, None)[:4]]
    sizes += [None if t is None else 2 * t for t in results(Tensor.abs, steep)[4:]]
    counts = [*results(torch.ones_like, one)[:4], *results(torch.ones_like, steep)[4:]]
    dtypes = [t.dtype for t in layer if t is not None]
    narrow = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    return [
        None if size is None else rounding_bound(size, count, narrow)
        for size, count in zip(sizes, counts, strict=True)
    ]


def forward_bound(layer: Layer) -> Tensor:
    """How far y of a linear layer may be."""
    y = reference.masked_linear(*_changed(layer, Tensor.abs, None))
    return rounding_bound(y, layer.x.shape[-1] + 1)


def sliced(tensor: Tensor) -> Tensor:
    """The same values one element into a storage, with rows 3 elements apart from each other."""
    shape = (*tensor.shape[:-1], tensor.shape[-1] + 3)
    return tensor.new_zeros(shape)[..., 1:-2].copy_(tensor)


def far_apart(tensor: Tensor, axis: int, stride: int) -> Tensor:
    """The same values in a storage of which only their pages are touched."""
    strides = list(tensor.contiguous().stride())
    strides[axis] = stride
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True))
    storage = torch.empty(reach + 1, dtype=tensor.dtype, device=tensor.device)
    return storage.as_strided(tensor.shape, strides).copy_(tensor)


@contextmanager
def all_forced(config: Config, kernels: Sequence[str]) -> Iterator[None]:
    with ExitStack() as stack:
        for kernel in kernels:
            stack.enter_context(forced(kernel, config))
        yield


def measure(
    monkeypatch: pytest.MonkeyPatch, times: Mapping[str, tuple[float, float]]
) -> dict[str, dict[str, int]]:
    """Have measured the kernels of ``times``: in ms, and with the masks written out.

    Returns:
        The sizes that each kernel is looked up by, filled as it is.
    """
    asked: dict[str, dict[str, int]] = {}

    def measured(kernel: str, device: torch.device, **sizes: int) -> dict[str, float] | None:
        asked[kernel] = sizes
        if kernel not in times:
            return None
        return dict(zip(("ms", "alternative_ms"), times[kernel], strict=True))

    monkeypatch.setattr(tuning, "measured", measured)
    return asked


def choose_first(
    monkeypatch: pytest.MonkeyPatch, *modules: ModuleType
) -> dict[str, dict[str, int]]:
    """Launch the kernels of the modules with their defaults; return the sizes each is chosen by."""
    chosen: dict[str, dict[str, int]] = {}

    def choose(
        kernel: str, configs: Sequence[Config], device: torch.device, **sizes: int
    ) -> Config:
        chosen[kernel] = sizes
        return configs[0]

    for module in modules:
        monkeypatch.setattr(module, "choose", choose)
    return chosen
