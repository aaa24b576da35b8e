"""What the settings of every method have in common; imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import Settings


@dataclass(frozen=True, kw_only=True)
class MethodSettings(Settings):
    """Settings of a method; a method has a subclass of its own, in its folder."""

    def check_run(self, *, tasks: int, moments: str) -> None:
        """Raise ConfigError where the method does not fit the other settings of a run.

        Args:
            tasks: Their number.
            moments: Type of Adam's moments.
        """
        if moments != "float32":
            raise ConfigError(
                f"moments={moments!r} needs the full head of a hypernetwork, and this method has "
                "none; use moments='float32'"
            )

    @property
    def running_statistics(self) -> bool:
        """Whether batch norm in the target network keeps running statistics for evaluation."""
        return True

    @property
    def unit_inputs(self) -> bool:
        """Whether inputs must be in [0, 1], so that images are not normalized."""
        return False

    def outputs(self, *, tasks: int, classes: int) -> int:
        """Return the outputs that the target network needs; default: those of one task.

        Args:
            tasks: Their number.
            classes: Of a task, at most.
        """
        return classes

    def cheaper(self) -> list[dict[str, Any]]:
        """Return changes of these settings that may take less memory."""
        return []

    @property
    def divides_head(self) -> bool:
        """Whether processes may share the rows of a hypernetwork's head."""
        return False

    @property
    def width(self) -> int:
        """Width of the method's largest part; 0 where it has none that can be chosen."""
        return 0

    def narrowed(self, width: int) -> dict[str, Any] | None:
        """Return the changes that make the width of the method's largest part ``width``.

        None where it has no such width.
        """
        return None
