"""ExSSNeT's settings, each with what it means; imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypermask_fast.fields import setting
from hypermask_fast.methods.subnetwork_settings import SubnetworkSettings


@dataclass(frozen=True, kw_only=True)
class ExSSNeTSettings(SubnetworkSettings):
    """Settings of :class:`~hypermask_fast.methods.exssnet.learner.ExSSNeT`."""

    editable: str = setting(
        "exclusive",
        "weights that a task trains: those of its mask that no earlier task's mask has, or all "
        "of its mask (original: SSNeT, which forgets)",
        choices=("exclusive", "original"),
    )
    mask_share: float = setting(
        0.5,
        "share of a task's steps that train the mask; the rest trains weights",
        above=0.0,
        high=1.0,
    )
    weight_lr: float | None = setting(
        None, "learning rate of the weights (none: the run's)", above=0.0
    )
    kkt: str = setting(
        "off",
        "scores that a task begins with: new ones (off), or those of the earlier task whose "
        "features tell its classes apart best, if better than chance (knn_best) or always "
        "(knn_always), or the mean of those better than chance (knn_all)",
        "keeps the scores of every task, 32 times its mask, unless keep_scores is false: a copy "
        "then has the donor's mask and new magnitudes",
        choices=("off", "knn_best", "knn_always", "knn_all"),
    )
    kkt_neighbours: int = setting(
        200, "neighbours that vote on a class (kkt)", "at most as many as there are", low=1
    )
    kkt_batch: int = setting(64, "examples in a batch that kkt looks at", low=1)
    kkt_share: float = setting(
        0.2,
        "share of the task's batches that kkt looks at, and one more",
        above=0.0,
        high=1.0,
    )
    kkt_features: str = setting(
        "inputs",
        "what kkt compares: what the last layer reads, or what the layer before it puts out",
        "they differ by an activation in a fully connected network, where outputs are published, "
        "and by more in others",
        choices=("inputs", "outputs"),
    )

    @property
    def keeps_scores(self) -> bool:
        return self.keep_scores is True or (self.keep_scores == "auto" and self.kkt != "off")

    def cheaper(self) -> list[dict[str, Any]]:
        return super().cheaper() + ([] if self.kkt == "off" else [{"kkt": "off"}])
