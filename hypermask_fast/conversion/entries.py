"""The parameters of a converted network: which of them are replaced, and why the others are not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Any

from torch import nn

from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.layers.norms import TASK_NORMS

EXCLUDED = "excluded: frozen"
GENERATED = "generated"


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


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a pattern names a module or parameter, or the module that it is part of."""
    return any(fnmatchcase(name, p) or fnmatchcase(name, f"{p}.*") for p in patterns)


def entries_of(net: nn.Module, exclude: tuple[str, ...], *, generated: bool = False) -> list[Entry]:
    """Return the parameters of a network in the order of ``named_parameters``.

    Args:
        net: The network.
        exclude: Names or glob patterns of those that stay plain and frozen.
        generated: All others, normalisation's too, are replaced by what a hypernetwork emits; else
            normalisation stays and masks multiply the rest. Default False.

    Raises:
        ConfigError: Nothing is left to mask, or to generate.
    """
    modules = dict(net.named_modules())
    entries, offset = [], 0
    for name, parameter in net.named_parameters():
        reason = ""
        if matches(name, exclude):
            reason = EXCLUDED
        elif generated:
            reason = GENERATED
        elif type(modules[name.rpartition(".")[0]]) in TASK_NORMS:
            reason = "normalisation"
        begin = offset if reason in ("", GENERATED) else -1
        entries.append(Entry(name, tuple(parameter.shape), begin, not reason, reason))
        offset += 0 if begin < 0 else parameter.numel()
    if not offset:
        raise ConfigError(
            f"{type(net).__name__} has nothing to {'generate' if generated else 'mask'}; it needs "
            "an nn.Linear or nn.Conv2d that exclude does not name"
        )
    return entries


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
