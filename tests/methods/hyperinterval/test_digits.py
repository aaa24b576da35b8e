"""On handwritten digits: what the regularizer, nesting and the worst case's loss are worth.

All accuracies are of images that are held out of the training data, and a difference counts where
it is more than three standard errors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from hypermask_fast.layers.intervals import Interval
from hypermask_fast.methods.hyperinterval.hypernetwork import IntervalHypernetwork
from hypermask_fast.methods.hyperinterval.learner import HyperInterval
from hypermask_fast.settings import build
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.trainer import Trainer

pytestmark = pytest.mark.long

IMAGES = 100
"""Held out of each task's training data."""


class Run(NamedTuple):
    trainer: Trainer
    learner: HyperInterval
    learned: list[float]
    first: Interval

    def accuracies(self) -> list[float]:
        """Return those of all tasks now, in percent; :attr:`learned`: as each was learned."""
        return [self.trainer.evaluate(task, "validation") for task in self.learner.learned]


def exceeds(share: float, other: float, images: int) -> bool:
    """Return whether a percentage is larger by three standard errors of the difference."""
    variance = (share * (100 - share) + other * (100 - other)) / images
    return share - other > 3 * variance**0.5


def bounds_of(trainer: Trainer, learner: HyperInterval, task: int) -> tuple[Interval, Tensor]:
    """Return bounds of the images' logits over a task's own box, and which are the label's."""
    x, y = next(iter(trainer._tasks[task].evaluation_batches("validation", 1000)))
    return learner.bounds(x, task), torch.nn.functional.one_hot(y, 2).bool()


def trained(tasks: int, **options: Any) -> Run:
    small = {
        **{"steps": 120, "mlp_hidden": (50,), "hidden": (30,), "embedding_dim": 8, "capacity": 5},
        **{"tasks": tasks, "device": "cpu", "validation": IMAGES},
    }
    chosen = RunConfig.from_preset("hyperinterval-split-digits", **{**small, **options})
    torch.manual_seed(0)
    scenario = build.make_scenario(chosen)
    learner = build.make_learner(chosen, scenario.input_shape, scenario.num_classes)
    trainer = build.make_trainer(chosen, learner)
    trainer.progress = False
    learned: list[float] = []
    first: list[Interval] = []
    assert isinstance(learner, HyperInterval)
    for place, task in enumerate(scenario):
        trainer.add(task)
        trainer.fit(task)
        learned.append(trainer.evaluate(place, "validation"))
        first += [] if first else [bounds_of(trainer, learner, 0)[0]]
    return Run(trainer, learner.eval(), learned, first[0])


def test_the_regularizer_keeps_the_first_task() -> None:
    kept = trained(5, mode="task", extent=0.1, beta=0.1)
    lost = trained(5, mode="task", extent=0.1, beta=0.0)
    assert not exceeds(kept.learned[0], kept.accuracies()[0], IMAGES)
    assert exceeds(lost.learned[0], lost.accuracies()[0], IMAGES)


def test_the_regularizer_keeps_what_nested_tasks_share() -> None:
    """All three of low, center and up of the first task's logits move less than half as far."""
    moved = []
    for beta in (10.0, 0.0):
        run = trained(2, extent=1.0, beta=beta, steps=200)
        assert exceeds(run.learned[0], 50, IMAGES)
        now, _ = bounds_of(run.trainer, run.learner, 0)
        pairs = zip(now, run.first, strict=True)
        moved.append(torch.stack([(a - b).square().mean().sqrt() for a, b in pairs]))
    assert (moved[0] < moved[1] / 2).all()


def test_the_worst_cases_loss_makes_the_whole_box_right() -> None:
    """The share of images that every network of the task's box is proven to get right."""
    proven = {}
    for kappa in (0.5, 1.0):
        run = trained(1, mode="task", extent=0.3, kappa=kappa)
        bounds, label = bounds_of(run.trainer, run.learner, 0)
        right = torch.where(label, bounds.low, bounds.up).argmax(1) == label.int().argmax(1)
        proven[kappa] = 100 * float(right.float().mean())
        assert exceeds(run.learned[0], 50, IMAGES)
    assert exceeds(proven[0.5], proven[1.0], IMAGES)


def apart(self: IntervalHypernetwork, ids: Tensor, extent: Any = None) -> tuple[Tensor, Tensor]:
    """Boxes around the embeddings themselves, which have no point in common."""
    _, radii = BOX(self, ids, extent)
    rows = self._embedded(ids)
    return torch.cat((rows[:1], rows[1:].detach())), radii


BOX = IntervalHypernetwork.box


def test_one_network_knows_all_tasks_because_their_boxes_are_nested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is as good as each task's own; of boxes that lie apart, the own ones are better."""
    for box in (BOX, apart):
        monkeypatch.setattr(IntervalHypernetwork, "box", box)
        run = trained(3, extent=1.0, beta=0.1, steps=200)
        shared, own = [], []
        network = run.learner.universal_network()
        for task, accuracy in enumerate(run.accuracies()):
            x, y = next(iter(run.trainer._tasks[task].evaluation_batches("validation", 1000)))
            shared.append(100 * float((network(x).argmax(1) == y).float().mean()))
            assert shared[-1] == pytest.approx(accuracy, abs=1e-4)
            mid = bounds_of(run.trainer, run.learner, task)[0].mid
            own.append(100 * float((mid.argmax(1) == y).float().mean()))
        of_shared, of_own = sum(shared) / 3, sum(own) / 3
        assert exceeds(of_shared, 50, 3 * IMAGES)
        assert exceeds(of_own, of_shared, 3 * IMAGES) == (box is apart)
