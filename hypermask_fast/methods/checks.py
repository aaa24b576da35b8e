"""Checks of the settings of a method."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from hypermask_fast.errors import ConfigError, nearest


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ConfigError where a value is not one of the choices."""
    if value not in choices:
        raise ConfigError(
            f"{name} is {value!r}{nearest(value, choices)}; choose one of {', '.join(choices)}"
        )


def check_factors(**factors: float) -> None:
    """Raise ConfigError where the factor of a term of the loss is negative or not finite."""
    for name, value in factors.items():
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{name} is {value}; give a finite number that is not negative")


def check_sparsity(sparsity: float) -> None:
    """Raise ConfigError where it is no percentage, and warn where it looks like a fraction."""
    if not 0 <= sparsity <= 100:
        raise ConfigError(f"sparsity is {sparsity}; give a percentage in [0, 100]")
    if 0 < sparsity < 1:
        warnings.warn(
            f"sparsity={sparsity} is in percent: it removes {sparsity} of 100 mask entries; give "
            f"{100 * sparsity:g} if a fraction was meant",
            stacklevel=3,
        )
