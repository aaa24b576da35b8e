"""What each PyTorch operation does to a FactoredGrad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from hypermask_fast.optim.factors import FactoredTensor, Factors

aten = torch.ops.aten


def _isfinite(grad: FactoredTensor) -> Tensor:
    if not grad.is_factored:
        return grad._value.materialized().isfinite()
    rows, columns = grad._value.finite_parts()
    return rows[:, None] & columns


def _set_data(grad: FactoredTensor, data: Tensor) -> None:
    """``Module.to`` replaces gradients by this."""
    if data.shape != grad.shape:
        raise ValueError(
            f"data has shape {tuple(data.shape)} and the gradient {tuple(grad.shape)}; "
            "assign a new gradient"
        )
    Tensor.data.__set__(grad, data)  # type: ignore[attr-defined]
    if isinstance(data, FactoredTensor):
        grad._value = data._value
    else:
        grad._value = Factors(data[:0, :].new_empty(0, len(data)), data[:0], data)


def _read_only(array: Any) -> Any:
    """Return an array that is a copy, so that a write, which would not reach it, is refused."""
    array.flags.writeable = False
    return array


# Composite operations, and ways out of PyTorch, that never reach __torch_dispatch__ whole.
ENTRY_POINTS: dict[Any, Callable[..., Any]] = {
    torch.isfinite: _isfinite,
    Tensor.isfinite: _isfinite,
    Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    Tensor.numpy: lambda grad, *args, **kwargs: _read_only(grad.to_dense().numpy(*args, **kwargs)),
    Tensor.tolist: lambda grad: grad.to_dense().tolist(),
    Tensor.__array__: lambda grad, *args, **kwargs: _read_only(
        grad.to_dense().__array__(*args, **kwargs)
    ),
    Tensor.__dlpack__: lambda grad, *args, **kwargs: grad.to_dense().__dlpack__(*args, **kwargs),
}


def _written(func: Any, args: Any, kwargs: Any) -> set[int]:
    """Return the ids of the gradients that an operation writes to."""
    if func.namespace == "c10d":
        arguments = [*args, *kwargs.values()]  # the schemas of collectives do not tell
    else:
        arguments = [
            args[position] if position < len(args) else kwargs.get(argument.name)
            for position, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
    entries = tree_leaves(arguments)
    return {id(entry) for entry in entries if isinstance(entry, FactoredTensor)}


def _through_dense(func: Any, *args: Any, **kwargs: Any) -> Any:
    written = _written(func, args, kwargs)
    if written and torch.Tag.inplace_view in func.tags:
        raise RuntimeError(
            f"{func.overloadpacket.__name__} would change the shape or memory of a FactoredGrad; "
            "give it grad.to_dense()"
        )
    aliases = [result.alias_info for result in func._schema.returns if result.alias_info]
    makes_view = any(not alias.is_write for alias in aliases)
    made: dict[int, Tensor] = {}
    owners: dict[int, FactoredTensor] = {}

    def dense(grad: FactoredTensor) -> Tensor:
        if id(grad) not in made:
            value = grad._value
            made[id(grad)] = value.materialized()
            if (makes_view or id(grad) in written) and value.dense is None:
                value.become(made[id(grad)])
            if id(grad) in written:
                owners[id(made[id(grad)])] = grad
        return made[id(grad)]

    args, kwargs = tree_map_only(FactoredTensor, dense, (args, kwargs))
    result = func(*args, **kwargs)
    return tree_map_only(Tensor, lambda x: owners.get(id(x), x), result)


def _detach(func: Any, grad: FactoredTensor) -> FactoredTensor:
    return type(grad)._of(grad._value)


def _clone(func: Any, grad: FactoredTensor, *, memory_format: Any = None) -> Tensor:
    # Who asks for a layout, as Rprop does, writes to the elements.
    if memory_format is not None:
        return grad.to_dense()
    return type(grad)._of(grad._value.copy())


def _zero_(func: Any, grad: FactoredTensor) -> FactoredTensor:
    grad._value.zero()
    return grad


def _new_empty_strided(
    func: Any, grad: FactoredTensor, size: Any, stride: Any, **kwargs: Any
) -> Any:
    """Autograd makes its copy of a gradient by ``new_empty_strided(...).copy_(grad)``."""
    same = {"dtype": grad.dtype, "device": grad.device}
    if tuple(size) != tuple(grad.shape) or any(
        kwargs.get(name) not in (None, value) for name, value in same.items()
    ):
        return _through_dense(func, grad, size, stride, **kwargs)
    return type(grad)._of(Factors(*grad._value.empty_factors()))


def _to_copy(func: Any, grad: FactoredTensor, **kwargs: Any) -> Tensor:
    value, dtype = grad._value, kwargs.get("dtype") or grad.dtype
    if value.dense is not None or not dtype.is_floating_point:
        return _through_dense(func, grad, **kwargs)
    return type(grad)._of(Factors(func(value.dz, **kwargs), func(value.hidden, **kwargs)))


def _is_scalar(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.dim() == 0 and not x.is_complex()
    return isinstance(x, (int, float))


def _scale(func: Any, x: Any, other: Any) -> Any:
    """``mul``, ``div`` and their in-place forms."""
    in_place = func.overloadpacket in (aten.mul_, aten.div_)
    divides = func.overloadpacket in (aten.div, aten.div_)
    grad, scalar = (
        (x, other) if isinstance(x, FactoredTensor) or in_place or divides else (other, x)
    )
    if not isinstance(grad, FactoredTensor) or not _is_scalar(scalar):
        return _through_dense(func, x, other)
    value = grad._value if in_place else grad._value.copy()
    if value.dense is not None:
        (value.dense.div_ if divides else value.dense.mul_)(scalar)
    else:
        value.dz = value.dz / scalar if divides else value.dz * scalar
    return grad if in_place else type(grad)._of(value)


def _neg(func: Any, grad: FactoredTensor) -> FactoredTensor:
    scale = aten.mul_ if func.overloadpacket is aten.neg_ else aten.mul
    return _scale(scale.Tensor, grad, -1)


def _add(func: Any, x: Any, other: Any, *, alpha: Any = 1) -> Any:
    """``add`` and ``sub``."""
    if not _alike(x, other) or not isinstance(other, FactoredTensor):
        return _through_dense(func, x, other, alpha=alpha)
    sign = -1 if func.overloadpacket is aten.sub else 1
    return type(x)._of(x._value.sum(other._value, sign * alpha))


def _alike(x: Any, other: Any) -> bool:
    return isinstance(x, FactoredTensor) and _fits(x, other)


def _fits(x: Any, other: Any) -> bool:
    return isinstance(other, Tensor) and (x.shape, x.dtype, x.device) == (
        other.shape,
        other.dtype,
        other.device,
    )


def _add_(func: Any, x: Any, other: Any, *, alpha: Any = 1) -> Any:
    """``add_`` and ``sub_``; autograd accumulates by the first."""
    if not _fits(x, other):
        return _through_dense(func, x, other, alpha=alpha)
    alpha = -alpha if func.overloadpacket is aten.sub_ else alpha
    if not isinstance(x, FactoredTensor):
        other._value.added_to(x, alpha)
    elif isinstance(other, FactoredTensor):
        total = x._value.sum(other._value, alpha)
        x._value.dz, x._value.hidden, x._value.dense = total.dz, total.hidden, total.dense
    else:
        dense = torch.mul(other, alpha)
        x._value.added_to(dense, 1)
        x._value.become(dense)
    return x


def _copy_(func: Any, x: Any, source: Any, non_blocking: bool = False) -> Any:
    if not isinstance(x, FactoredTensor) or not _fits(x, source):
        return _through_dense(func, x, source, non_blocking)
    if isinstance(source, FactoredTensor):
        value = source._value.copy()
        x._value.dz, x._value.hidden, x._value.dense = value.dz, value.hidden, value.dense
    else:
        x._value.become(source.clone())
    return x


def _vector_norm(
    func: Any, grad: FactoredTensor, ord: Any = 2, *args: Any, **kwargs: Any
) -> Tensor:
    # Positional after ord: dim, keepdim.
    whole = not any(args) and not kwargs.get("keepdim") and kwargs.get("dim") is None
    if ord != 2 or not whole or not grad.is_factored:
        return _through_dense(func, grad, ord, *args, **kwargs)
    return grad._value.norm().to(kwargs.get("dtype") or grad.dtype)


def _foreach_(func: Any, tensors: Any, *args: Any, **kwargs: Any) -> None:
    """The in-place foreach forms of the operations below: the dense tensors stay together."""
    factored = [i for i, x in enumerate(tensors) if isinstance(x, FactoredTensor)]
    if not factored:
        _through_dense(func, tensors, *args, **kwargs)
        return
    dense = [i for i, x in enumerate(tensors) if not isinstance(x, FactoredTensor)]
    if dense:
        func(*(_pick(x, dense) for x in (tensors, *args)), **kwargs)
    method = func.overloadpacket.__name__.removeprefix("_foreach_")
    for i in factored:
        own = [x[i] if isinstance(x, (list, tuple)) else x for x in args]
        getattr(tensors[i], method)(*own, **kwargs)


def _pick(x: Any, indices: list[int]) -> Any:
    return [x[i] for i in indices] if isinstance(x, (list, tuple)) else x


def _foreach_norm(func: Any, tensors: Any, ord: Any = 2, dtype: Any = None) -> list[Tensor]:
    plain = [x for x in tensors if not isinstance(x, FactoredTensor)]
    norms = iter(func(plain, ord, dtype) if plain else ())
    norm = torch.linalg.vector_norm
    return [
        norm(x, ord, dtype=dtype) if isinstance(x, FactoredTensor) else next(norms) for x in tensors
    ]


def _unscale_(func: Any, tensors: Any, found_inf: Tensor, inverse_scale: Tensor) -> None:
    """What GradScaler calls."""
    dense = [x for x in tensors if not isinstance(x, FactoredTensor)]
    if dense:
        func(dense, found_inf, inverse_scale)
    for x in tensors:
        if isinstance(x, FactoredTensor):
            infinite = x.all_finite().logical_not().to(found_inf.dtype)
            found_inf.copy_(torch.maximum(found_inf, infinite))
            x.mul_(inverse_scale)


def _fused_step_(func: Any, params: Any, grads: Any, *buffers: Any, **kwargs: Any) -> None:
    """The fused optimizers: their kernels unscale gradients in place, and write their buffers."""
    dense = [x.to_dense() if isinstance(x, FactoredTensor) else x for x in grads]
    buffers = tree_map_only(
        FactoredTensor, lambda x: x._value.become(x._value.materialized()), buffers
    )
    func(params, dense, *buffers, **kwargs)
    if kwargs.get("grad_scale") is not None:
        for x, unscaled in zip(grads, dense, strict=True):
            if isinstance(x, FactoredTensor):
                x._value.become(unscaled)


_HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.detach: _detach,
    aten.alias: _detach,
    aten.clone: _clone,
    aten.zero_: _zero_,
    aten.new_empty_strided: _new_empty_strided,
    aten._to_copy: _to_copy,
    aten.mul: _scale,
    aten.mul_: _scale,
    aten.div: _scale,
    aten.div_: _scale,
    aten.neg: _neg,
    aten.neg_: _neg,
    aten.add: _add,
    aten.add_: _add_,
    aten.sub: _add,
    aten.sub_: _add_,
    aten.copy_: _copy_,
    aten.linalg_vector_norm: _vector_norm,
    aten._foreach_norm: _foreach_norm,
    aten._amp_foreach_non_finite_check_and_unscale_: _unscale_,
    **{
        getattr(aten, f"_foreach_{name}_"): _foreach_
        for name in ("add", "copy", "div", "mul", "neg", "sub", "zero")
    },
    **{
        getattr(aten, f"_fused_{name}_"): _fused_step_
        for name in ("adagrad", "adam", "adamw", "sgd")
    },
}


def dispatch(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation that has a FactoredGrad among its arguments."""
    handler = (
        _through_dense if "out" in kwargs else _HANDLERS.get(func.overloadpacket, _through_dense)
    )
    return handler(func, *args, **kwargs)
