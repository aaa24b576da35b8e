"""Batches of the images that are trained on most: cropped digits, and normalised colours."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.launches.launch import Launch, Run
from hypermask_fast.kernels.scenarios.gather import CONFIGS, batch


def _make(shape: tuple[int, ...], size: int, columns: int, **options: Any) -> Run:
    images = torch.randint(0, 256, (6000, *shape), dtype=torch.uint8)
    draws = torch.randint(0, 2, (12000, columns - 2))
    table = torch.cat((torch.randint(0, 6000, (12000, 2)), draws), 1)
    number = torch.zeros((), dtype=torch.int64)
    if options.pop("permuted", False):
        options["permutation"] = torch.randperm((shape[1] + 4) * (shape[2] + 4))
    if "mean" in options:
        options["mean"] = options["std"] = torch.ones(3, 1, 1)
    return partial(batch, images, table, number, size, **options)


LAUNCHES = {
    name: Launch(partial(_make, shape, size, columns, **options), "batch", CONFIGS)
    for name, shape, size, columns, options in (
        ("split-mnist", (1, 28, 28), 128, 5, {"crop": 4}),
        ("permuted", (1, 28, 28), 128, 2, {"pad": 2, "permuted": True}),
        ("cifar", (3, 32, 32), 32, 5, {"crop": 4, "mean": None}),
    )
}
