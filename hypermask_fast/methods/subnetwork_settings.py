"""Settings of the methods that select a subnetwork for each task; imports no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hypermask_fast.fields import setting
from hypermask_fast.methods.settings import MethodSettings


@dataclass(frozen=True, kw_only=True)
class SubnetworkSettings(MethodSettings):
    """What SupSup and ExSSNeT share.

    Attributes:
        most_dense: The largest share of a layer that ``density_rule="er"`` keeps.
    """

    most_dense: ClassVar[float] = 1.0

    density: float = setting(
        0.1,
        "share of each layer's weights that a task keeps (density_rule uniform)",
        above=0.0,
        high=1.0,
    )
    density_rule: str = setting(
        "uniform",
        "share that a layer keeps: the same in all, or er: by its size (Erdos-Renyi)",
        "er: ``er_scale * (in + out) / (in * out * kernel)``",
        choices=("uniform", "er"),
    )
    er_scale: float = setting(1.0, "factor of the shares (density_rule er)", above=0.0)
    weights: str = setting(
        "signed_constant",
        "weights to begin with: sign times sqrt(2 / fan_in) of the layer (published), or as_is",
        choices=("signed_constant", "as_is"),
    )

    keep_scores: bool | Literal["auto"] = setting(
        "auto",
        "keep the scores of every learned task, 32 times its mask: true, false, or auto: where kkt "
        "copies them",
        "without them a task that goes on, or a copy, has new scores that make the same mask",
    )

    @property
    def keeps_scores(self) -> bool:
        """Whether scores of learned tasks are kept."""
        return self.keep_scores is True

    @property
    def mask_rule(self) -> str:
        """What a mask keeps: "top_k" or "threshold"."""
        return "top_k"

    def cheaper(self) -> list[dict[str, Any]]:
        return [{"keep_scores": False}] if self.keeps_scores else []

    def density_of(self, shape: Sequence[int]) -> float:
        """Return the share of a weight's entries that a task keeps.

        Args:
            shape: (out, in, ...) of the weight.
        """
        if self.density_rule == "uniform":
            return self.density
        out, into, *kernel = shape
        size = out * into
        for length in kernel:
            size *= length
        return min(self.most_dense, self.er_scale * (into + out) / size)
