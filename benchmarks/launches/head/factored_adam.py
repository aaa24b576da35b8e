"""Adam steps of the heads of Permuted MNIST and Split MNIST, and of a wide trunk."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.launches.launch import Launch, Run, floats
from hypermask_fast.kernels.head import adam_wgmma
from hypermask_fast.kernels.head.adam import CONFIGS, adam_scalars, factored_adam

_ADAM: dict[str, Any] = {
    **{"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    **{"weight_decay": 0.0, "decoupled": False},
}


def tenth_step() -> Tensor:
    """Return the scalars of Adam's tenth step."""
    return adam_scalars(floats().device, lr=1e-3, step=10, **_ADAM)


def _step(rows: int, width: int, count: int, moments: torch.dtype = torch.float32) -> Run:
    tensors = (
        floats(rows, width),
        floats(rows, width, dtype=moments),
        floats(rows, width, dtype=moments, positive=True),
        floats(count, rows),
        floats(count, width),
        tenth_step(),
    )
    return partial(
        factored_adam,
        *tensors,
        bias=floats(rows),
        bias_exp_avg=floats(rows, dtype=moments),
        bias_exp_avg_sq=floats(rows, dtype=moments, positive=True),
    )


def _scalars() -> Run:
    lr, step, scale = (floats(positive=True) for _ in range(3))
    tensors: dict[str, Any] = {"lr": lr, "step": step, "grad_scale": scale, "finite": scale > 0}
    return lambda: adam_scalars(step.device, **tensors, **_ADAM)


_SUMS, _PRODUCTS = "factored_adam_sums", "factored_adam_products"
_WGMMA = "factored_adam_wgmma"
_SIZES: dict[str, tuple[str, tuple[int, int, int], torch.dtype]] = {
    "permuted": (_SUMS, (2_036_010, 100, 1), torch.float32),
    "permuted-10": (_SUMS, (2_036_010, 100, 10), torch.float32),
    "permuted-16-bf16": (_SUMS, (2_036_010, 100, 16), torch.bfloat16),
    "permuted-100": (_WGMMA, (2_036_010, 100, 100), torch.float32),
    "permuted-100-bf16": (_WGMMA, (2_036_010, 100, 100), torch.bfloat16),
    "split-5": (_SUMS, (477_010, 25, 5), torch.float32),
    "wide-20": (_PRODUCTS, (1_000_000, 1000, 20), torch.float32),
}
LAUNCHES = {"scalars": Launch(_scalars, "factored_adam_scalars", ({},))} | {
    name: Launch(
        partial(_step, *size, moments),
        kernel,
        {**CONFIGS, "wgmma": adam_wgmma.CONFIGS}[kernel.removeprefix("factored_adam_")],
    )
    for name, (kernel, size, moments) in _SIZES.items()
}
