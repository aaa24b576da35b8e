"""The names of phases, variants and clocks; imports no PyTorch."""

from __future__ import annotations

HYPERNETWORK, MASKS, TARGET = "hypernetwork forward", "masks", "target forward"
REGULARIZER, BACKWARD, OPTIMIZER, REST = "regularizer", "backward", "optimizer", "rest"
PHASES = (HYPERNETWORK, MASKS, TARGET, REGULARIZER, BACKWARD, OPTIMIZER, REST)
"""In the order of a published step; the rest comes after the first optimizer's."""

OURS, TORCH, HYPNETTORCH = "hypermask_fast", "torch", "hypnettorch"
AGAINST = (TORCH, HYPNETTORCH)
"""What a step can be measured beside."""

CLOCKS = {"elapsed": "time that passes", "processor": "processor time of all threads"}
"""What times are, by name."""
