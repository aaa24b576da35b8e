"""What an optimizer updates in the backward pass, and what stands in for its gradient."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

# Weak on both sides: neither a parameter nor an optimizer lives longer for being here.
_OWNERS: Any = WeakTensorKeyDictionary()


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


def claim(parameter: Tensor, optimizer: Optimizer | None) -> None:
    """Note the optimizer that updates a parameter in the backward pass; None: there is none."""
    if optimizer is not None:
        _OWNERS[parameter] = weakref.ref(optimizer)
    else:
        _OWNERS.pop(parameter, None)


def owner(parameter: Tensor) -> Optimizer | None:
    """Return the optimizer that updates a parameter in the backward pass, if one does.

    None where there will be no backward pass to the parameter.
    """
    if not (torch.is_grad_enabled() and parameter.requires_grad):
        return None
    reference = _OWNERS.get(parameter)
    return None if reference is None else reference()
