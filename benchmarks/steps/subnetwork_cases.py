"""Training steps of SupSup and of both phases of ExSSNeT, in the fifth task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.steps.case import EXACT, Engine, StepCase
from benchmarks.steps.engine import LR, SEED, Total, Trained, everything, make_ours
from benchmarks.steps.exssnet import PublishedWeights
from benchmarks.subnetworks import Published
from hypermask_fast.methods.exssnet.learner import MASK, WEIGHTS, ExSSNeT
from hypermask_fast.methods.supsup.learner import SupSup
from hypermask_fast.networks import FC1024, MLP, GEMResNet18, LeNet300_100

TOP_K: dict[str, Any] = {"density": 0.1}
THRESHOLD = {"rule": "threshold"}


@dataclass(frozen=True)
class SubnetworkStep(StepCase):
    """A training step of SupSup or ExSSNeT.

    Attributes:
        name: As on the command line.
        make_network: Makes the target network.
        shape: Of a batch.
        options: Of the method.
        phase: Of ExSSNeT; "" for SupSup.
        earlier: Tasks before the one that is trained.
    """

    name: str
    make_network: Callable[[], nn.Module]
    shape: tuple[int, ...]
    options: dict[str, Any]
    phase: str = ""
    earlier: int = 4

    def make_batch(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(SEED)
        x = torch.randn(self.shape, generator=generator)
        with torch.no_grad():
            classes = self.make_network()(x[:2]).shape[1]
        return x, torch.randint(classes, self.shape[:1], generator=generator)

    def parameters(self) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in self.make_network().parameters())

    def make_learner(self, dtype: torch.dtype, device: str) -> SupSup | ExSSNeT:
        """Return a learner within its task after the earlier ones."""
        torch.manual_seed(SEED)
        method = ExSSNeT if self.phase else SupSup
        learner = method(self.make_network(), **self.options)
        for task in range(self.earlier + 1):
            learner.add_task()
            learner.begin_task(task, steps=2)
            if self.phase:
                learner.begin_phase(MASK)
            if task < self.earlier:
                learner.end_task()
        # Of two scores of one magnitude at the edge of a mask, a sort keeps whichever it likes.
        magnitudes = 1 + torch.randperm(len(learner.scores))
        with torch.no_grad():
            learner.scores.copy_(learner.scores.sign() * magnitudes / len(magnitudes))
        learner = learner.to(device, dtype)
        if self.phase == WEIGHTS:
            learner.begin_phase(WEIGHTS)
        return learner

    def make_engine(self, variant: str, device: str = "cpu") -> Engine:
        dtype = torch.float64 if variant == EXACT else torch.float32
        learner = self.make_learner(dtype, device)
        if variant not in ("published", EXACT):
            edited = learner.edited if isinstance(learner, ExSSNeT) else None
            part = {"scores": [learner.scores]} if edited is None else {"weights": [edited.values]}
            trained = Trained(part, [], Total._fields, everything)
            return make_ours(learner, variant, self, device, trained)
        plain = self._plain(learner)

        def step(x: Tensor, y: Tensor) -> Total:
            return Total(plain.step(x.to(dtype), y))

        if isinstance(plain, PublishedWeights):
            named = {f"weights.{name}": [w] for name, w in plain.weights.items()}
            trained = Trained(named, [], Total._fields, partial(_editable, plain.editable))
        else:
            named = {f"scores.{name}": [s] for name, s in plain.scores.items()}
            trained = Trained(named, [], Total._fields, everything)
        return trained._replace(optimizers=[plain.optimizer]).engine(step)

    def _plain(self, learner: SupSup | ExSSNeT) -> Published | PublishedWeights:
        if self.phase == WEIGHTS:
            assert isinstance(learner, ExSSNeT)
            return PublishedWeights(learner, self.earlier, LR)
        return Published(learner)


def _editable(editable: dict[str, Tensor], name: str, p: Tensor) -> Tensor:
    return p[editable[name.removeprefix("weights.")]]


def _resnet() -> nn.Module:
    return GEMResNet18(5)


def _tiny() -> nn.Module:
    return MLP(12, (16, 8), 4, bias=False)


def find_cases(size: str) -> list[SubnetworkStep]:
    """Return the cases, "full" or "tiny"."""
    images, pictures = (128, 784), (128, 3, 32, 32)
    cases = [
        SubnetworkStep("supsup-lenet-top-k", lambda: LeNet300_100(10), images, TOP_K),
        SubnetworkStep("supsup-lenet-threshold", lambda: LeNet300_100(100), images, THRESHOLD),
        SubnetworkStep("supsup-fc1024-top-k", lambda: FC1024(784, 10), images, TOP_K),
        SubnetworkStep("supsup-fc1024-threshold", lambda: FC1024(784, 500), images, THRESHOLD),
        SubnetworkStep("supsup-gem-resnet18-top-k", _resnet, pictures, TOP_K),
    ]
    for phase in (MASK, WEIGHTS):
        lenet, resnet = f"exssnet-lenet-{phase}", f"exssnet-gem-resnet18-{phase}"
        cases += [
            SubnetworkStep(lenet, lambda: LeNet300_100(2), (64, 784), TOP_K, phase),
            SubnetworkStep(resnet, _resnet, (64, 3, 32, 32), TOP_K, phase),
        ]
    if size == "full":
        return cases
    share: dict[str, Any] = {"density": 0.3}
    return [
        SubnetworkStep(
            *(case.name, _tiny, (6, 12), share if case.options == TOP_K else case.options),
            phase=case.phase,
        )
        for case in cases
    ]
