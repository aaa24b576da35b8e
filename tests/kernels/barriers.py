"""Barriers in the machine code of AMD's GPUs that do not wait for what was written before."""

from __future__ import annotations

import re

_TO_LDS = re.compile(r"ds_(write|add|sub|min|max|and|or|xor|inc|dec|cmpst|wrxchg)")
_WAITS = re.compile(r"lgkmcnt\(0\)")
_ENDS = re.compile(r"[.\w$]+:|s_(c?branch|setpc)")


def bare_barriers(text: str) -> int:
    """Return how many barriers come after a write to shared memory that was not waited for.

    A barrier of AMD's only lets wavefronts meet: without ``s_waitcnt lgkmcnt(0)`` before it others
    may read what is not there yet. What comes before a label or a branch is not looked at.

    Args:
        text: The assembly.
    """
    found, pending = 0, False
    for line in text.splitlines():
        operation = line.split(";")[0].strip()
        waits = operation.startswith("s_waitcnt") and _WAITS.search(operation)
        if waits or _ENDS.match(operation):
            pending = False
        elif _TO_LDS.match(operation):
            pending = True
        elif operation.startswith("s_barrier"):
            found += pending
    return found
