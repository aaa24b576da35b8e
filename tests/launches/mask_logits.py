"""Logits and their gradients of the head for Permuted MNIST, Split MNIST and a wide trunk."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hypermask_fast.kernels.mask_logits import CONFIGS, hidden_grad, mask_logits


def _logits(rows: int, width: int, count: int) -> Callable[[], object]:
    def launch() -> object:
        weight = torch.empty(rows, width, device="cuda")
        hidden = torch.empty(count, width, device="cuda")
        return mask_logits(weight, torch.empty(rows, device="cuda"), hidden)

    return launch


def _grad(rows: int, width: int, count: int) -> Callable[[], object]:
    def launch() -> object:
        weight = torch.empty(rows, width, device="cuda")
        return hidden_grad(weight, torch.empty(count, rows, device="cuda"))

    return launch


_SIZES = {
    "permuted": (2_036_010, 100, 1),
    "permuted-10": (2_036_010, 100, 10),
    "permuted-100": (2_036_010, 100, 100),
    "split": (477_010, 25, 1),
    "split-5": (477_010, 25, 5),
    "wide": (1_000_000, 1000, 1),
    "wide-20": (1_000_000, 1000, 20),
}
LAUNCHES = {}
for _name, _size in _SIZES.items():
    _kind = "vector" if _size[2] == 1 else "matrix16" if _size[2] <= 16 else "matrix128"
    _kernel = f"mask_logits_{_kind}"
    LAUNCHES[_name] = (_logits(*_size), _kernel, CONFIGS[_kind])
    LAUNCHES[f"{_name}-grad"] = (_grad(*_size), f"{_kernel}_grad", CONFIGS[f"{_kind}_grad"])
