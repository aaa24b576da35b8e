"""The parameters of a converted network: which of them are replaced, and why the others are not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from hypermask_fast.errors import CheckpointError

EXCLUDED = "excluded: frozen"
SHARED = "shared: trained for all tasks"
PER_TASK = "a copy for each task"
GENERATED = "generated"
NORMALISATION = "normalisation"


@dataclass(frozen=True)
class Entry:
    """A parameter of the target network.

    Attributes:
        name: As in ``named_parameters``.
        shape: Its shape.
        offset: Where its numbers begin in the flat vector that a hypernetwork emits, or -1 where it
            has none.
        masked: Whether a mask multiplies it.
        reason: Why not, or "".

    A tensor that several modules have is one parameter, under its first name.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    masked: bool
    reason: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def manifest(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Return name, shape, offset, masked and reason of every entry, for JSON."""
    return [{**asdict(entry), "shape": list(entry.shape)} for entry in entries]


def check_manifest(
    saved: Sequence[Mapping[str, Any]], current: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse a checkpoint whose entries are not those of the model.

    Args:
        saved: Entries of the checkpoint, as in :func:`manifest`, in order.
        current: Those of the model.

    Raises:
        CheckpointError: They differ; the first difference is named.
    """
    fix = "build the network with the settings of the checkpoint, or start a new run"
    for i, (old, new) in enumerate(zip_longest(saved, current)):
        if old is None or new is None:
            names = [repr(entry["name"]) if entry else "absent" for entry in (new, old)]
            raise CheckpointError(
                f"manifest entry {i} is {names[0]} in the model and {names[1]} in the checkpoint; "
                f"{fix}"
            )
        for key in dict.fromkeys([*old, *new]):
            seen, expected = new.get(key), old.get(key)
            if key == "shape" and seen is not None and expected is not None:
                seen, expected = list(seen), list(expected)  # JSON has no tuples
            if seen != expected:
                raise CheckpointError(
                    f"manifest entry {i} {old.get('name')!r} has {key} {seen!r} in the model and "
                    f"{expected!r} in the checkpoint; {fix}"
                )
