"""What stands in for the gradient of a parameter that the backward pass has updated."""

from __future__ import annotations

from typing import Any

from torch import Tensor


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
