"""Launches over several tensors: tuples of pointers, of which a program takes its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.masks.blocks import Blocks, blocks
from hypermask_fast.kernels.tuning import Config

_TENSORS = 64
"""Of a launch, at most."""


@triton.jit
def address(pointers, tensor):
    """The address of one of several tensors, as int64."""
    address = pointers[0].to(tl.int64)
    for i in tl.static_range(1, len(pointers)):
        address = tl.where(tensor == i, pointers[i].to(tl.int64), address)
    return address


class Group(NamedTuple):
    """Tensors that one launch processes: the first of them, which they are, and their blocks."""

    first: int
    chosen: tuple[bool, ...]
    table: Blocks

    def only(self, tensors: Sequence[Tensor | None]) -> tuple[Tensor | int, ...]:
        """Return the tensors, with the address 0 for None and for those of other launches."""
        pairs = zip(tensors, self.chosen, strict=True)
        return tuple(t if c and t is not None else 0 for t, c in pairs)


@cache
def _groups(
    sizes: tuple[int, ...], dtypes: tuple[torch.dtype, ...], block: int, device: torch.device
) -> tuple[Group, ...]:
    groups = []
    for dtype in dict.fromkeys(dtypes):
        places = [place for place, other in enumerate(dtypes) if other == dtype]
        for i in range(0, len(places), _TENSORS):
            chosen = tuple(place in places[i : i + _TENSORS] for place in range(len(sizes)))
            groups.append(Group(places[i], chosen, blocks(sizes, block, device, chosen)))
    return tuple(groups)


def groups_of(weights: Sequence[Tensor], config: Config) -> tuple[Group, ...]:
    """Return the launches over a network's tensors, each of one dtype.

    Args:
        weights: The tensors, on one device.
        config: Of the launches, with the entries of a block.
    """
    sizes, dtypes = tuple(w.numel() for w in weights), tuple(w.dtype for w in weights)
    return _groups(sizes, dtypes, config["BLOCK"], weights[0].device)
