"""Adam steps of the heads of Permuted MNIST and Split MNIST, and of a wide trunk."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hypermask_fast.kernels.factored_adam import CONFIGS, SCALARS, adam_scalars, factored_adam


def _step(
    rows: int, width: int, count: int, moments: torch.dtype = torch.float32
) -> Callable[[], object]:
    def launch() -> object:
        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(*shape, dtype=dtype, device="cuda")

        return factored_adam(
            empty(rows, width),
            empty(rows, width, dtype=moments),
            empty(rows, width, dtype=moments),
            empty(count, rows),
            empty(count, width),
            empty(SCALARS),
            bias=empty(rows),
            bias_exp_avg=empty(rows, dtype=moments),
            bias_exp_avg_sq=empty(rows, dtype=moments),
        )

    return launch


def _scalars() -> object:
    numbers = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "decoupled": True}
    step = torch.empty((), device="cuda")
    finite = torch.empty((), dtype=torch.bool, device="cuda")
    return adam_scalars(step.device, lr=step, step=step, grad_scale=step, finite=finite, **numbers)


_SUMS, _PRODUCTS = "factored_adam_sums", "factored_adam_products"
LAUNCHES = {
    "scalars": (_scalars, "factored_adam_scalars", ({},)),
    "permuted": (_step(2_036_010, 100, 1), _SUMS, CONFIGS["sums"]),
    "permuted-10": (_step(2_036_010, 100, 10), _SUMS, CONFIGS["sums"]),
    "permuted-16-bf16": (_step(2_036_010, 100, 16, torch.bfloat16), _SUMS, CONFIGS["sums"]),
    "permuted-100": (_step(2_036_010, 100, 100), _PRODUCTS, CONFIGS["products"]),
    "permuted-100-bf16": (
        _step(2_036_010, 100, 100, torch.bfloat16),
        _PRODUCTS,
        CONFIGS["products"],
    ),
    "split-5": (_step(477_010, 25, 5), _SUMS, CONFIGS["sums"]),
    "wide-20": (_step(1_000_000, 1000, 20), _PRODUCTS, CONFIGS["products"]),
}
