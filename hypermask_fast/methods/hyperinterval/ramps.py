"""How the boxes grow, and the weight of their centers falls, over the first half of a task."""

from __future__ import annotations

import torch
from torch import Tensor

_KAPPA_STEP = 5e-5


def extent_at(step: int | Tensor, ramp: int, final: float) -> float | Tensor:
    """Return the extent of a step: from 0 to the final one over the steps of the ramp, evenly.

    Args:
        step: Its number, from 1; a tensor on a device that is not to be waited for.
        ramp: Steps; 0 for none.
        final: From the last step of the ramp on.
    """
    if not ramp:
        return final
    if isinstance(step, Tensor):
        return final * ((step - 1).double() / max(1, ramp - 1)).clamp(max=1)
    return final * min(1.0, (step - 1) / max(1, ramp - 1))


def kappa_at(step: int | Tensor, ramp: int, final: float) -> float | Tensor:
    """Return kappa of a step: 1, less 5e-5 a step but no less than the final one, and then that.

    Args:
        step, ramp: As in :func:`extent_at`.
        final: From the first step after the ramp on, however far it is.
    """
    if not ramp:
        return final
    if isinstance(step, Tensor):
        falling = (1 - _KAPPA_STEP * (step - 1).double()).clamp(min=final)
        return torch.where(step <= ramp, falling, final)
    return max(1 - _KAPPA_STEP * (step - 1), final) if step <= ramp else final
