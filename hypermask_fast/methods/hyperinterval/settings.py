"""HyperInterval's settings, each with what it means; imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import setting
from hypermask_fast.methods.generated_settings import GeneratedSettings


@dataclass(frozen=True, kw_only=True)
class HyperIntervalSettings(GeneratedSettings):
    """Settings of :class:`~hypermask_fast.methods.hyperinterval.learner.HyperInterval`."""

    mode: str = setting(
        "nested",
        "embeddings: boxes that all hold the origin, so that one network serves all tasks (nested),"
        " or a box for each task with radii that are learned (task)",
        "nested needs no task id; task is task-incremental",
        choices=("nested", "task"),
    )
    embedding_dim: int = setting(24, "length of a task embedding", low=1)
    new_embedding: str = setting(
        "drawn",
        "embedding a task starts with: drawn from N(0, 1) (published), or a copy of the one of the "
        "task that was learned last (previous: meant by the published custom_init, which is lost)",
        choices=("drawn", "previous"),
    )
    hidden: tuple[int, ...] = setting((100,), "widths of the hypernetwork's hidden layers", low=1)
    capacity: int = setting(
        128, "task embeddings made up front, at least the tasks", "more tasks double them", low=1
    )
    extent: float = setting(
        1.0,
        "sum of the radii of a task's box (published as perturbated_epsilon)",
        "rises from 0 linearly over the first half of a task's steps",
        low=0.0,
    )
    kappa: float = setting(
        0.5,
        "weight of the center's cross-entropy, the worst case's being the rest",
        "falls from 1 by 5e-5 a step in the first half of a task's steps, and jumps to it then",
        low=0.0,
        high=1.0,
    )
    arithmetic: str = setting(
        "interval",
        "how boxes go through the target network: interval arithmetic, a bound, or three passes "
        "whose outputs are exchanged in pairs, which is none",
        "interval takes networks of linear and convolution layers with ReLU, pooling and sums "
        "between them; three_pass takes any",
        choices=("interval", "three_pass"),
    )
    center: str = setting(
        "network",
        "outputs in evaluation: those of the center's network, or the middle of the three passes "
        "after the exchanges (published with three_pass), which takes three networks",
        choices=("network", "exchanged"),
    )
    evaluates: str = setting(
        "universal",
        "network in evaluation of nested tasks: the universal one for all (published), or each "
        "task's own",
        "a task that is being learned has its own",
        choices=("universal", "task"),
    )
    beta: float = setting(0.01, "weight of the hypernetwork's output regularizer", low=0.0)
    division: str = setting(
        "once",
        "the regularizer is divided by the earlier tasks once, a mean, or twice (published)",
        choices=("once", "twice"),
    )
    targets: str = setting(
        "full",
        "how the earlier tasks' outputs are kept: as they are, or in bfloat16 (half the memory)",
        choices=("full", "bfloat16"),
    )
    bn: str = setting(
        "per_task",
        "batch norm: running statistics for each task, or those of the batch",
        "its scale and shift are generated in either case",
        choices=("per_task", "batch"),
    )

    def check(self) -> None:
        if self.center == "exchanged" and self.arithmetic != "three_pass":
            raise ConfigError(
                f"center='exchanged' needs arithmetic='three_pass', not {self.arithmetic!r}; use "
                "center='network'"
            )

    def cheaper(self) -> list[dict[str, Any]]:
        return [{"targets": "bfloat16"}]

    @property
    def width(self) -> int:
        return self.hidden[-1] if self.hidden else self.embedding_dim

    def narrowed(self, width: int) -> dict[str, Any]:
        return {"hidden": (*self.hidden[:-1], width)} if self.hidden else {"embedding_dim": width}
