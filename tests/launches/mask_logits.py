"""Logits and their gradients of the head for Permuted MNIST, Split MNIST and a wide trunk."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hypermask_fast.kernels.mask_logits import (
    CONFIGS,
    hidden_grad,
    mask_logits,
    residual_factors,
    target_logits,
)


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


def _residuals(
    rows: int, width: int, earlier: int, dtype: torch.dtype = torch.float32
) -> Callable[[], object]:
    def launch() -> object:
        return residual_factors(
            torch.empty(rows, width, device="cuda"),
            torch.empty(rows, device="cuda"),
            torch.empty(rows, device="cuda"),
            torch.empty(earlier + 1, width, device="cuda"),
            torch.empty(earlier, rows, dtype=dtype, device="cuda"),
            coefficient=torch.empty(1, device="cuda"),
            scalars=torch.empty(9, device="cuda"),
        )

    return launch


def _targets(rows: int, width: int, earlier: int) -> Callable[[], object]:
    def launch() -> object:
        weight = torch.empty(rows, width, device="cuda")
        hidden = torch.empty(earlier, width, device="cuda")
        out = torch.empty(earlier, rows, device="cuda")
        return target_logits(weight, torch.empty(rows, device="cuda"), hidden, out)

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
_MANY = ("mask_logits_matrix128", CONFIGS["matrix128"])
LAUNCHES["permuted-99-residuals"] = (_residuals(2_036_010, 100, 99), *_MANY)
LAUNCHES["permuted-99-residuals-bf16"] = (
    _residuals(2_036_010, 100, 99, torch.bfloat16),
    *_MANY,
)
LAUNCHES["permuted-99-targets"] = (_targets(2_036_010, 100, 99), *_MANY)
LAUNCHES["wide-9-residuals"] = (
    _residuals(1_000_000, 1000, 9),
    "mask_logits_matrix16",
    CONFIGS["matrix16"],
)
