"""HNET+R's settings, each with what it means; imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from hypermask_fast.fields import setting
from hypermask_fast.methods.replay.settings import ReplaySettings


@dataclass(frozen=True, kw_only=True)
class HNETRSettings(ReplaySettings):
    """Settings of :class:`~hypermask_fast.methods.hnet_r.learner.HNETR`."""

    task_heads: str = setting(
        "shared",
        "outputs of the network: the same for all tasks, some for each task (multi), or those of "
        "all tasks so far in the loss (growing)",
        "shared is domain-incremental (CL2); with multi (CL1) and growing (CL3) the network needs "
        "outputs for the classes of all tasks together, and a task's own are what a forward gives",
        choices=("shared", "multi", "growing"),
    )
    temperature: float = setting(
        2.0, "what logits are divided by in the loss of replayed images", above=0.0
    )

    def outputs(self, *, tasks: int, classes: int) -> int:
        return classes if self.task_heads == "shared" else tasks * classes
