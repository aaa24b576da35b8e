"""Checkpoints of a run whose processes share a head: each writes its rows, the first the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from hypermask_fast.files.atomic import fsync_folder
from hypermask_fast.files.checkpoint import NewCheckpoint, encoded, new_checkpoint, payload_of
from hypermask_fast.files.checkpoint_index import ROWS
from hypermask_fast.files.divided_tensors import disk_in_a_sentence, write_parts
from hypermask_fast.files.in_all import in_all
from hypermask_fast.files.tensor_file import check_tensors
from hypermask_fast.head.shard import Place
from hypermask_fast.training.divided import Part

_KEEP = 2


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    rows: Mapping[str, Part],
    state: Mapping[str, Any],
    place: Place,
) -> None:
    """Write a checkpoint as `checkpoint.save` does, in all processes; `checkpoint.load` reads it.

    Args:
        folder, step, state: As there.
        tensors: Those that are not divided, of which the first process writes its own.
        rows: The divided ones, of which each process writes its part.
        place: This process among those that call this.

    Raises:
        TrainingError: A tensor of a process holds NaN or infinity.
        CheckpointError: The disk is full or refuses the data, or a later checkpoint exists.
        ProcessLost: Another process ended, or did not answer in time.
    """
    is_first = place.rank == 0
    divided = {name: part.dim for name, part in rows.items() if part.dim is not None}
    elsewhere = sum(
        math.prod(part.shape) * part.own.element_size() + place.world * 2**10
        for part in rows.values()
    )
    made: list[NewCheckpoint] = []  # by the first process
    final, temporary = NewCheckpoint(folder, step).final, NewCheckpoint(folder, step).temporary
    text = b""
    with ExitStack() as stack:

        def begin() -> None:
            check_tensors({name: part.own for name, part in rows.items()}, step)
            nonlocal text
            if is_first:
                text = encoded(state, step, divided)
                check_tensors(tensors, step)
                payload = payload_of(tensors) + len(text) + elsewhere
                made.append(stack.enter_context(new_checkpoint(folder, step, payload, _KEEP)))
                with disk_in_a_sentence(final):
                    (temporary / ROWS).mkdir()

        def end() -> None:
            for each in made:
                with disk_in_a_sentence(final):
                    fsync_folder(temporary / ROWS)
                    each.write(tensors, text)
                each.files |= {f"{ROWS}/{name}": entry for name, entry in files.items()}
                stack.close()

        in_all(place, begin)
        files = write_parts(temporary / ROWS, rows, place, final)
        in_all(place, end)
