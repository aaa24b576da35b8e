"""What several processes do together: one that fails ends all, with one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hypermask_fast.errors import CheckpointError, TrainingError
from hypermask_fast.head.shard import Place

_Result = TypeVar("_Result")


def in_all(place: Place, call: Callable[[], _Result]) -> list[_Result]:
    """Return what a function returned in each process.

    Args:
        place: This process among those that call this.
        call: What each of them does, without an exchange.

    Raises:
        TrainingError: It raised one in one of them, in all.
        CheckpointError: It failed otherwise in one of them, in all.
        ProcessLost: Another process ended, or did not answer in time.
    """
    result, error = None, ""
    kind: type[CheckpointError | TrainingError] = CheckpointError
    try:
        result = call()
    except Exception as failed:
        if place.world == 1:
            raise
        error = str(failed) or type(failed).__name__
        kind = TrainingError if isinstance(failed, TrainingError) else CheckpointError
    found = place.all((result, error, kind))
    for rank, (_, text, kind) in enumerate(found):
        if text:
            raise kind(text if rank == place.rank else f"process {rank} failed: {text}")
    return [value for value, *_ in found]
