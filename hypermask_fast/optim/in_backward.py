"""An update that a backward pass took, until the step that it belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Verdict(NamedTuple):
    """Whether an update is taken, on its device.

    Attributes:
        finite: 0-d bool, whether it is.
        taken, skipped: 0-d float32, 1 where it is, and where it is not.
    """

    finite: Tensor
    taken: Tensor
    skipped: Tensor

    @classmethod
    def of(cls, finite: Tensor) -> Verdict:
        """Return the verdict that a 0-d bool is."""
        taken = finite.to(torch.float32)
        return cls(finite, taken, 1 - taken)


class PendingUpdate:
    """Whether a backward pass updated parameters that no ``step()`` followed yet.

    An optimizer keeps one object for its life, for those that wrap it to see the same.
    """

    finite: bool | Verdict | None = None
    """Whether the update was, and so taken: None where none is pending, on a GPU on the device."""

    _stand_ins: tuple[tuple[Tensor, SpentGrad], ...] = ()

    def begin(self, parameters: Iterable[Tensor], finite: bool | Verdict) -> None:
        """Put stand-ins in place of the gradients of the parameters that are updated."""
        self.finite = finite
        self._stand_ins = tuple((p, SpentGrad(p)) for p in parameters)
        for p, stand_in in self._stand_ins:
            p.grad = stand_in

    def end(self) -> bool | Verdict | None:
        """Take the stand-ins away, and return :attr:`finite`."""
        for p, stand_in in self._stand_ins:
            # There may be another gradient by now.
            if p.grad is stand_in:
                p.grad = None
        finite, self.finite, self._stand_ins = self.finite, None, ()
        return finite


class SpentGrad(Tensor):
    """Stands in a parameter's ``grad`` between its update in the backward pass and ``step()``.

    It takes no memory, and every operation on it raises: there is nothing to clip, scale, add to
    or read.

    Args:
        parameter: The parameter; gives shape, dtype and device.
    """

    @staticmethod
    def __new__(cls, parameter: Tensor) -> SpentGrad:
        return Tensor._make_wrapper_subclass(
            cls, parameter.shape, dtype=parameter.dtype, device=parameter.device
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"SpentGrad(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(
            f"{func.overloadpacket.__name__} asks for the gradient of a head that the backward "
            "pass has updated already, so it cannot be clipped, unscaled, accumulated or read; "
            "build FactoredAdam with step_in_backward=False"
        )
