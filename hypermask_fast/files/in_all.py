"""What several processes do together: one that fails ends all, with one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from hypermask_fast.errors import CheckpointError
from hypermask_fast.head.shard import Place

_Result = TypeVar("_Result")


def in_all(place: Place, call: Callable[[], _Result]) -> list[_Result]:
    """Return what a function returned in each process.

    Args:
        place: This process among those that call this.
        call: What each of them does, without an exchange.

    Raises:
        CheckpointError: It failed in one of them, in all.
    """
    result, error = None, ""
    try:
        result = call()
    except Exception as failed:
        if place.world == 1:
            raise
        error = str(failed)
    found = [(result, error)] * place.world
    if place.world > 1:
        dist.all_gather_object(found, (result, error), group=place.group)
    for rank, (_, text) in enumerate(found):
        if text:
            raise CheckpointError(text if rank == place.rank else f"process {rank} failed: {text}")
    return [value for value, _ in found]  # type: ignore[misc]
