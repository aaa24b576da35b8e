"""Checks of the settings of a method."""

from __future__ import annotations

import warnings

from hypermask_fast.errors import ConfigError


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
