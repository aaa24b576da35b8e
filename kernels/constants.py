"""Numbers as tensors on a device, made once: a step only points to them, and so does its graph."""

from __future__ import annotations

import torch
from torch import Tensor

_mode, _FAKE = torch._C._get_dispatch_mode, torch._C._TorchDispatchModeKey.FAKE
_made: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}
_MOST = 256
"""Numbers that are kept: a schedule may have another learning rate in each step."""


def constant(value: float, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a 0-d tensor of a number, which nothing may write to.

    It is kept for good, as captured graphs point to it, and copied from the host, which waits, so
    that every stream may read it. One that a capture asks for first is filled by the graph alone,
    and one beside many others by a launch each time.

    Args:
        value: The number.
        device: Where the tensor is.
        dtype: Of the tensor. Default float32.
    """
    # A mode of fake tensors takes no real one.
    if torch.compiler.is_compiling() or _mode(_FAKE) is not None:
        return torch.full((), value, dtype=dtype, device=device)
    key = value, dtype, device
    found = _made.get(key)
    if found is None:
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if capturing or len(_made) >= _MOST:
            return torch.full((), value, dtype=dtype, device=device)
        with torch.inference_mode(False):
            found = torch.tensor(value, dtype=dtype, device=device)
        if type(found) is Tensor:
            _made[key] = found
    return found
