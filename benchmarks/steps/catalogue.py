"""All cases of steps, by suite and name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from benchmarks.steps import (
    hnet_cases,
    hyperinterval_cases,
    hypermask_cases,
    inference_cases,
    subnetwork_cases,
)
from benchmarks.steps.case import StepCase
from hypermask_fast.errors import ConfigError, nearest


def _all(suite: str, size: str) -> list[StepCase]:
    masked = hypermask_cases.find_cases(suite)
    return [
        *(hypermask_cases.tiny(case) if size == "tiny" else case for case in masked),
        *hnet_cases.find_cases(size),
        *hyperinterval_cases.find_cases(size),
        *subnetwork_cases.find_cases(size),
        *inference_cases.find_cases(size),
    ]


def find_cases(
    suite: str, names: Sequence[str] | None = None, size: str = "full"
) -> list[StepCase]:
    """Return the cases of a suite, or those of them that are named.

    Args:
        suite: "cpu" or "gpu".
        names: Such as "permuted-mnist-t9" or "hnet-*"; None for all.
        size: "full" or "tiny".

    Raises:
        ConfigError: The suite has no case of that name.
    """
    cases = {case.name: case for case in _all(suite, size)}
    if names is None:
        return list(cases.values())
    found: dict[str, StepCase] = {}
    for pattern in names:
        fitting = {name: case for name, case in cases.items() if fnmatch(name, pattern)}
        if not fitting:
            raise ConfigError(
                f"case is {pattern!r}{nearest(pattern, cases)}; choose from {', '.join(cases)}"
            )
        found |= fitting
    return list(found.values())
