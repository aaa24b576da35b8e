"""What a preset is expected to reach, where that was measured; imports no PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hypermask_fast.settings.changes import changed
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.presets import expected_record

LEAST_TOLERANCE = 0.2
"""In points of accuracy: what other machines and versions change at most."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The mean final accuracy that runs of a preset had.

    Attributes:
        acc: Mean over seeds, in percent.
        std: Standard deviation over seeds; None where there was one seed.
        seeds: How many.
        source: Where the figure stands.
    """

    acc: float
    std: float | None = None
    seeds: int
    source: str

    def __str__(self) -> str:
        spread = "" if self.std is None else f" +/- {self.std:.2f}"
        count = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        return f"ACC {self.acc:.2f}{spread} of {count} ({self.source})"

    def tolerance(self, seeds: int) -> float | None:
        """Return how far the mean of other seeds may be off, in points.

        Three standard errors of the difference of both means, 3 s sqrt(1/n + 1/m), and at least
        :data:`LEAST_TOLERANCE`. None where there is no deviation s.

        Args:
            seeds: How many there are of the others.
        """
        if self.std is None:
            return None
        error = self.std * math.sqrt(1 / seeds + 1 / self.seeds)
        return max(LEAST_TOLERANCE, 3 * error)


def expected_of(config: RunConfig) -> tuple[Expected | None, list[str]]:
    """Return what settings are expected to reach, and names of those that are not the preset's.

    Where there are such names, the figure is none of these settings.
    """
    record = expected_record(config.preset) if config.preset else None
    if record is None:
        return None, []
    others = changed(RunConfig.from_preset(config.preset), config)
    return Expected(**record), [name for name in others if name != "seed"]
