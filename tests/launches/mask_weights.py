"""Masked weights of a wide network, and of many small tensors, with every optional argument."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hypermask_fast.kernels import mask_weights

_WIDE = ((1000, 784), (1000,), (1000, 1000), (1000,), (10, 1000), (10,))
_MANY = ((16, 16, 3, 3), (16,)) * 30


def _launch(
    direction: str, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, everything: bool
) -> Callable[[], object]:
    def launch() -> object:
        weights = [torch.empty(shape, dtype=dtype, device="cuda") for shape in shapes]
        z = torch.empty(sum(w.numel() for w in weights), device="cuda")
        thresholds = torch.empty(len(shapes), device="cuda") if everything else None
        previous = torch.empty_like(z, dtype=dtype) if everything else None
        if direction == "forward":
            masked = [True] * (len(shapes) - 1) + [False]
            return mask_weights.forward(weights, z, thresholds, masked, previous)
        grads = [*weights[:-1], None]
        drift_grad = torch.empty((), device="cuda") if everything else None
        return mask_weights.backward(weights, z, thresholds, grads, previous, drift_grad=drift_grad)

    return launch


LAUNCHES = {
    f"{direction}-{name}": (
        _launch(direction, shapes, dtype, everything),
        f"mask_weights_{direction}",
        mask_weights.CONFIGS,
    )
    for direction in ("forward", "backward")
    for name, shapes, dtype, everything in (
        ("plain", _WIDE, torch.float32, False),
        ("wide", _WIDE, torch.float32, True),
        ("bfloat16", _WIDE, torch.bfloat16, True),
        ("many", _MANY, torch.float32, True),
    )
}
