"""Inference of unknown tasks, beside its published loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.inference import entropies_in_batches, entropies_one_by_one
from benchmarks.steps import hypermask_cases
from benchmarks.steps.case import EXACT, Engine, StepCase
from benchmarks.steps.engine import SEED
from benchmarks.steps.subnetwork_cases import THRESHOLD, TOP_K, SubnetworkStep
from benchmarks.subnetworks import Published
from hypermask_fast.inference.one_shot import one_shot
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import FC1024, MLP

_IMAGES, _COMPARED = 10_000, 40


def _double(x: Tensor, variant: str) -> Tensor:
    return x.double() if variant == EXACT else x


@dataclass(frozen=True)
class Entropy(StepCase):
    """Entropies of images over the five tasks of Split MNIST, by a masked MLP.

    Attributes:
        name: As on the command line.
        alone: The published loop runs one image at a time, of which it takes ``compared``; else
            batches.
        images: Their number.
        compared: How many of them are compared.
        size: "full" or "tiny", of the network.
        earlier: Tasks that were learned.
    """

    name: str
    alone: bool
    images: int = _IMAGES
    compared: int = _COMPARED
    size: str = "full"
    earlier: int = 5

    variants: ClassVar = ("published", "ours-fallback", "ours")

    @property
    def _case(self) -> hypermask_cases.Case:
        return hypermask_cases.find_case("cpu", "split-mnist-t4", self.size)

    def make_batch(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(SEED)
        x = torch.rand(self.images, *self._case.input_shape, generator=generator)
        return x, torch.zeros(self.images, dtype=torch.int64)

    def parameters(self) -> int:
        return self._case.parameters()

    def make_engine(self, variant: str, device: str = "cpu") -> Engine:
        learner = hypermask_cases.make_learner(self._case, device)
        learner.end_task()
        learner = learner.to(device, torch.float64 if variant == EXACT else None).eval()
        if variant in ("published", EXACT):
            return self._published(learner, variant)

        def check(x: Tensor, y: Tensor) -> dict[str, Tensor]:
            scores = learner.predict(x).scores[:, : self.compared]
            return {"value.entropy": -scores.double().cpu()}

        return Engine(lambda x, y: learner.predict(x), check)

    def _published(self, learner: HyperMask, variant: str) -> Engine:
        found = entropies_one_by_one if self.alone else entropies_in_batches
        some = self.compared if self.alone else self.images

        def check(x: Tensor, y: Tensor) -> dict[str, Tensor]:
            rows = _double(x[: self.compared], variant)
            return {"value.entropy": torch.tensor(found(learner, rows), dtype=torch.float64).t()}

        return Engine(lambda x, y: found(learner, x[:some]), check, share=some / self.images)


@dataclass(frozen=True)
class OneShot(StepCase):
    """The gradient of the tasks' factors for a batch, over the learned tasks of SupSup.

    Attributes:
        name: As on the command line.
        of: The network and its masks; tasks of its ``earlier`` and one more were learned.
    """

    name: str
    of: SubnetworkStep

    variants: ClassVar = ("published", "ours-fallback", "ours")

    @property
    def earlier(self) -> int:  # type: ignore[override]
        return self.of.earlier + 1

    def make_batch(self) -> tuple[Tensor, Tensor]:
        return self.of.make_batch()

    def parameters(self) -> int:
        return self.of.parameters() * self.earlier

    def make_engine(self, variant: str, device: str = "cpu") -> Engine:
        dtype = torch.float64 if variant == EXACT else torch.float32
        learner = self.of.make_learner(dtype, device)
        learner.end_task()
        learner.eval()
        gradient: Callable[[Tensor], Tensor]
        if variant in ("published", EXACT):
            plain = Published(learner)
            masks = plain.dense_masks(learner)

            def gradient(x: Tensor) -> Tensor:
                return plain.gradient(x.to(dtype), masks)
        else:

            def gradient(x: Tensor) -> Tensor:
                return one_shot(learner, x).grad[0]

        def check(x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"gradient.alpha": gradient(x).double().cpu()}

        return Engine(lambda x, y: gradient(x), check)


def find_cases(size: str) -> list[StepCase]:
    """Return the cases, "full" or "tiny"."""
    small: dict[str, Any] = {"images": 8, "compared": 3, "size": size} if size == "tiny" else {}
    network = (lambda: MLP(12, (16, 8), 4, bias=False)) if size == "tiny" else _network
    shape, tasks = ((6, 12), 3) if size == "tiny" else ((128, 784), 20)
    rules = {"top-k": TOP_K, "threshold": THRESHOLD}
    return [
        Entropy("inference-entropy-one-by-one", alone=True, **small),
        Entropy("inference-entropy-in-batches", alone=False, **small),
        *(
            OneShot(
                f"inference-one-shot-{rule}",
                SubnetworkStep(rule, network, shape, options, earlier=tasks - 1),
            )
            for rule, options in rules.items()
        ),
    ]


def _network() -> FC1024:
    return FC1024(784, 500)
