"""Steps of the heads of Permuted MNIST and Split MNIST, and of a wide trunk."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hypermask_fast.kernels.factored_adam import SCALARS
from hypermask_fast.kernels.step_rows import CONFIGS, earlier_logits, step_rows

_PROCESSORS = 132


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="cuda")


def _step(
    rows: int, width: int, earlier: int, dtype: torch.dtype = torch.float32
) -> Callable[[], object]:
    def launch() -> object:
        moments = [_empty(rows, width, dtype=dtype) for _ in range(2)]
        moments += [_empty(rows, dtype=dtype) for _ in range(2)]
        return step_rows(
            *(_empty(rows, width), _empty(rows), *moments),
            *(_empty(rows), _empty(earlier + 1, width), _empty(earlier, rows, dtype=dtype)),
            coefficient=_empty(1),
            scalars=_empty(SCALARS),
            processors=_PROCESSORS,
        )

    return launch


def _logits(rows: int, width: int, earlier: int) -> Callable[[], object]:
    def launch() -> object:
        head = _empty(rows, width), _empty(rows)
        return earlier_logits(*head, _empty(earlier, width), processors=_PROCESSORS)

    return launch


_SIZES = {
    "permuted-0": _step(2_036_010, 100, 0),
    "permuted-9": _step(2_036_010, 100, 9),
    "permuted-9-bf16": _step(2_036_010, 100, 9, torch.bfloat16),
    "permuted-9-targets": _logits(2_036_010, 100, 9),
    "permuted-15": _step(2_036_010, 100, 15),
    "split-4": _step(477_010, 25, 4),
    "wide-9": _step(500_000, 256, 9),
}
LAUNCHES = {name: (launch, "step_rows", CONFIGS) for name, launch in _SIZES.items()}
