"""Percentiles of masks by a sort, with the tanh of the kernels themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hypermask_fast.kernels.masks import weights as mask_weights


def abs_tanh(z: Tensor) -> Tensor:
    """|tanh z| of the kernels: below 1e-4 that is |z|, with its bits."""
    return mask_weights.forward([torch.ones_like(z)], z, None, [True])[1]


def sorted_thresholds(z: Tensor, sizes: Sequence[int], p: float) -> Tensor:
    """The percentile of each tensor (T,), between its order statistics of |z|."""
    found = []
    for part in z.abs().split(list(sizes)):
        place = torch.tensor(p * (len(part) - 1) / 100, dtype=torch.float64, device=z.device)
        ranks = torch.stack((place.floor(), place.ceil())).long()
        low, high = abs_tanh(part.sort().values[ranks]).double()
        found.append(torch.lerp(low, high, place - place.floor()).float())
    return torch.stack(found)
