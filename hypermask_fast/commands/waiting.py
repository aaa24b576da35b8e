"""How PyTorch's threads wait for each other on a CPU."""

from __future__ import annotations

import os

_POLICIES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# Longer than the gaps within a training step, and far shorter than a time slice of the system.
_TURNS = "20000"


def sleep_soon() -> None:
    """Let threads sleep that have waited for long, before torch is first imported.

    Beside other programs they would keep the cores from those that they wait for. What the
    environment says stays.
    """
    if not any(name in os.environ for name in _POLICIES):
        os.environ["GOMP_SPINCOUNT"] = _TURNS
