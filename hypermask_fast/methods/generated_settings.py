"""What the settings of methods with a hypernetwork share."""

from __future__ import annotations

from typing import Any

from hypermask_fast.errors import ConfigError
from hypermask_fast.methods.settings import MethodSettings


class GeneratedSettings(MethodSettings):
    """Settings of a hypernetwork with a row of its table for each task."""

    capacity: int
    bn: str

    def check_run(self, *, tasks: int, moments: str) -> None:
        if self.capacity < tasks:
            raise ConfigError(
                f"capacity={self.capacity} is less than tasks={tasks}; raise the capacity"
            )

    @property
    def running_statistics(self) -> bool:
        return self.bn != "batch"


class HeadSettings(GeneratedSettings):
    """Settings of a hypernetwork whose head is full or chunked."""

    head: str
    hidden: tuple[int, ...]
    embedding_dim: int

    def check_run(self, *, tasks: int, moments: str) -> None:
        super().check_run(tasks=tasks, moments=moments)
        if moments != "float32" and self.head != "full":
            raise ConfigError(
                f"moments={moments!r} needs head='full', not {self.head!r}; use moments='float32'"
            )

    @property
    def width(self) -> int:
        return self.hidden[-1] if self.hidden else self.embedding_dim

    def narrowed(self, width: int) -> dict[str, Any]:
        return {"hidden": (*self.hidden[:-1], width)} if self.hidden else {"embedding_dim": width}
