"""What a case is: a step of one setting, whose variants are measured beside each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

SUITES = ("cpu", "gpu")
SIZES = ("tiny", "full")
CLOCKS = ("elapsed", "processor")
VARIANTS = ("published", "hypnettorch", "eager", "ours-fallback", "ours-eager", "ours")
EXACT = "float64"
"""The published variant in double precision, which the others' first steps are compared with."""


class Engine(NamedTuple):
    """A variant, ready to step.

    Attributes:
        step: Takes a batch.
        check: Takes the first step on a batch, and returns what it did, in float64 on the CPU, by
            names that all variants share; see :func:`hypermask_fast.benching.first_step.errors`.
        status: Returns how steps are taken: whether compiled, and as a CUDA graph.
        share: Of the batch that a step takes; its time is divided by it.
    """

    step: Callable[[Tensor, Tensor], Any]
    check: Callable[[Tensor, Tensor], dict[str, Tensor]]
    status: Callable[[], dict[str, str]] = dict
    share: float = 1.0


class StepCase(ABC):
    """A step of one setting: of training, or of inference.

    Attributes:
        name: As on the command line.
        variants: Those of :data:`VARIANTS` that it has.
        earlier: Tasks that were learned before the one that is trained.
        bytes_of: About the bytes that a variant takes for each of its :meth:`parameters`.
    """

    name: str
    earlier: int
    variants: ClassVar[tuple[str, ...]] = ("published", "ours-fallback", "ours-eager", "ours")
    bytes_of: ClassVar[dict[str, int]] = {
        **{"published": 48, EXACT: 96},
        **{"ours-fallback": 32, "ours-eager": 32, "ours": 32},
    }

    @abstractmethod
    def make_batch(self) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of the recorded batch."""

    @abstractmethod
    def make_engine(self, variant: str, device: str) -> Engine:
        """Build a variant in the recorded state.

        Args:
            variant: One of :attr:`variants`, or :data:`EXACT`.
            device: "cpu" or "cuda".
        """

    @abstractmethod
    def parameters(self) -> int:
        """Return the number of parameters that decides how much memory a variant takes."""

    def floor_bytes(self) -> int | None:
        """Return the bytes that an exact float32 step has to move, where that bounds its time."""
        return None
