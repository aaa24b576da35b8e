"""A gradient of low rank that is kept as its two factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hypermask_fast.optim import factored_ops
from hypermask_fast.optim.factors import FactoredTensor, Factors


def _rebuild(dz: Tensor, hidden: Tensor, dense: Tensor | None) -> FactoredGrad:
    return FactoredGrad._of(Factors(dz, hidden, dense))


torch.serialization.add_safe_globals([_rebuild])


class FactoredGrad(FactoredTensor):
    """The gradient ``dz^T hidden`` of a matrix (N, H), held as ``dz`` (r, N) and ``hidden`` (r, H).

    It has the shape, dtype and device of the matrix and can be assigned to its ``grad``. Scaling by
    a number or a 0-d tensor, negation, sums of such gradients, ``zero_``, ``clone``, ``copy_``,
    2-norms, ``isfinite``, clipping by norm, ``GradScaler``, deepcopy and pickle act on the factors.
    A sum appends factors.

    Every other operation sees a dense tensor made for it. One that writes to the gradient (a mask,
    clipping by value, a collective of ``torch.distributed``), that returns a view of it or that
    adds a dense tensor in place makes it hold that dense tensor from then on (:attr:`is_factored`
    is False), and so does a sum whose factors would take more memory than the matrix. What would
    change its shape or memory in place raises.

    Args:
        dz: (r, N), the gradients by the rows of the logits.
        hidden: (r, H), the head's inputs, of the same dtype and device.

    Raises:
        ValueError: Shapes, dtypes or devices do not belong together.
    """

    @staticmethod
    def __new__(cls, dz: Tensor, hidden: Tensor) -> FactoredGrad:
        if dz.dim() != 2 or hidden.dim() != 2 or len(dz) != len(hidden):
            raise ValueError(
                f"dz has shape {tuple(dz.shape)} and hidden {tuple(hidden.shape)}; "
                "give (r, N) and (r, H)"
            )
        if dz.dtype != hidden.dtype or dz.device != hidden.device:
            raise ValueError(
                f"dz is {dz.dtype} on {dz.device} and hidden {hidden.dtype} on {hidden.device}; "
                "give one dtype and device"
            )
        return FactoredGrad._of(Factors(dz.detach(), hidden.detach()))

    @property
    def dz(self) -> Tensor:
        """(r, N); not to be written to."""
        return self._factor("dz")

    @property
    def hidden(self) -> Tensor:
        """(r, H); not to be written to."""
        return self._factor("hidden")

    def _factor(self, name: str) -> Tensor:
        if not self.is_factored:
            raise RuntimeError(
                f"this gradient became dense and has no {name}; use to_dense(), and look at "
                "is_factored first"
            )
        return getattr(self._value, name)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        form = f"rank={len(self._value.dz)}" if self.is_factored else "dense"
        return f"FactoredGrad({form}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> FactoredGrad:
        if id(self) not in memo:
            memo[id(self)] = FactoredGrad._of(self._value.copy())
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        value = self._value
        return _rebuild, (value.dz, value.hidden, value.dense)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            handler = factored_ops.ENTRY_POINTS.get(func, func)
            return handler(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return factored_ops.dispatch(func, *args, **(kwargs or {}))
