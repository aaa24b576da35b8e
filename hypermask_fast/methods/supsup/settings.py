"""SupSup's settings, each with what it means; imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hypermask_fast.fields import setting
from hypermask_fast.methods.subnetwork_settings import SubnetworkSettings


@dataclass(frozen=True, kw_only=True)
class SupSupSettings(SubnetworkSettings):
    """Settings of :class:`~hypermask_fast.methods.supsup.learner.SupSup`."""

    most_dense: ClassVar[float] = 0.5

    rule: str = setting(
        "top_k",
        "what a mask keeps: the largest scores of each layer by magnitude, or those of at least 0",
        "top_k keeps the shares of density_rule (published where the task is known); threshold "
        "about half (published where it is inferred)",
        choices=("top_k", "threshold"),
    )
    score_init: str = setting(
        "random",
        "scores that a task begins with: new ones, or the mean of the earlier tasks' (transfer)",
        "the mean takes a number for each weight; the first task's are new",
        choices=("random", "mean"),
    )
    superfluous: int = setting(
        0,
        "outputs beyond the classes, by which tasks are inferred",
        "the loss is then of all outputs; one_shot and binary need them for objective='g'",
        low=0,
    )

    @property
    def mask_rule(self) -> str:
        return self.rule

    def outputs(self, *, tasks: int, classes: int) -> int:
        return classes + self.superfluous
