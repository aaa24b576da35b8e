"""Settings of the methods that select a subnetwork for each task; imports no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

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
