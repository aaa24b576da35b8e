"""Training steps of HyperInterval with four earlier tasks, in both modes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.steps.case import EXACT, Engine, StepCase
from benchmarks.steps.engine import SEED, Total, Trained, make_ours
from benchmarks.steps.hyperinterval import CASES, EARLIER, make, plain_step
from hypermask_fast.methods.hyperinterval.learner import HyperInterval


@dataclass(frozen=True)
class HyperIntervalStep(StepCase):
    """A training step of HyperInterval in the middle of its fifth task.

    Attributes:
        name: As on the command line.
        setting: One of :data:`benchmarks.steps.hyperinterval.CASES`.
    """

    name: str
    setting: str
    earlier: int = EARLIER

    def make_batch(self) -> tuple[Tensor, Tensor]:
        return make(self.setting)[1:]

    def parameters(self) -> int:
        case = CASES[self.setting]
        rows = sum((a + 1) * b for a, b in pairwise(case.widths))
        return rows * (case.hidden[-1] + 1 + 3 * self.earlier)

    def make_engine(self, variant: str, device: str = "cpu") -> Engine:
        learner, *_ = make(self.setting)
        learner = learner.to(device, torch.float64 if variant == EXACT else None)
        trained = Trained(_named(learner), [], Total._fields)
        if variant not in ("published", EXACT):
            _move(learner)
            return make_ours(learner, variant, self, device, trained)
        plain, optimizer = plain_step(learner)
        _move(learner)

        def step(x: Tensor, y: Tensor) -> Total:
            return Total(plain(x.double() if variant == EXACT else x, y))

        return trained._replace(optimizers=[optimizer]).engine(step)


def _named(learner: HyperInterval) -> dict[str, list[torch.nn.Parameter]]:
    return {name: [p] for name, p in learner.hypernetwork.named_parameters()}


@torch.no_grad()
def _move(learner: HyperInterval) -> None:
    """Move the parameters to the same float32 numbers in each dtype, so that no residual is 0."""
    generator = torch.Generator().manual_seed(SEED)
    for p in learner.hypernetwork.parameters():
        change = 1e-3 * torch.randn(p.shape, generator=generator)
        p.copy_(p.float().cpu() + change)


def find_cases(size: str) -> list[HyperIntervalStep]:
    """Return the cases, "full" or "tiny"."""
    setting = "tiny" if size == "tiny" else "split-mnist"
    modes = ("", "-task")
    return [
        HyperIntervalStep(f"hyperinterval-split-mnist{mode}-t4", setting + mode) for mode in modes
    ]
