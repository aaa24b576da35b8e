"""On handwritten digits: what the regularizer and the worst case's loss are worth."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hypermask_fast.methods.hyperinterval.learner import HyperInterval
from hypermask_fast.settings import build
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.trainer import Trainer

pytestmark = pytest.mark.long


def trained(tasks: int, **options: Any) -> tuple[Trainer, HyperInterval]:
    small = {"steps": 120, "mlp_hidden": (50,), "hidden": (30,), "embedding_dim": 8, "capacity": 5}
    chosen = RunConfig.from_preset(
        "hyperinterval-split-digits", **{**small, "tasks": tasks, "device": "cpu", **options}
    )
    torch.manual_seed(0)
    scenario = build.make_scenario(chosen)
    learner = build.make_learner(chosen, scenario.input_shape, scenario.num_classes)
    trainer = build.make_trainer(chosen, learner)
    trainer.progress = False
    for task in scenario:
        trainer.add(task)
    for task in scenario:
        trainer.fit(task)
    assert isinstance(learner, HyperInterval)
    return trainer, learner.eval()


def test_the_regularizer_keeps_the_first_task() -> None:
    first = {}
    for beta in (0.1, 0.0):
        trainer, _ = trained(5, mode="task", extent=0.1, beta=beta)
        assert trainer.accuracy[1, 0] > 97
        first[beta] = trainer.accuracy[-1, 0]
    assert first[0.1] > 97
    assert first[0.0] < 90


def test_the_worst_cases_loss_makes_the_whole_box_right() -> None:
    """The share of test images that every network of the task's box is proven to get right."""
    proven = {}
    for kappa in (0.5, 1.0):
        trainer, learner = trained(1, mode="task", extent=0.3, kappa=kappa)
        batches = list(trainer._tasks[0].evaluation_batches("test", 1000))
        x, y = batches[0]
        bounds = learner.bounds(x, 0)
        label = torch.nn.functional.one_hot(y, 2).bool()
        worst = torch.where(label, bounds.low, bounds.up)
        assert (bounds.mid.argmax(1) == y).float().mean() > 0.97
        proven[kappa] = float((worst.argmax(1) == y).float().mean())
    assert proven[0.5] > 0.9
    assert proven[1.0] < 0.5


def test_one_network_knows_tasks_that_it_was_not_trained_on_last() -> None:
    larger = {"steps": 200, "embedding_dim": 24, "hidden": (50,), "mlp_hidden": (100, 100)}
    trainer, learner = trained(3, extent=1.0, beta=0.01, **larger)
    assert trainer.accuracy[-1, :3].mean() > 80
    network = learner.universal_network()
    for task in range(3):
        x, y = next(iter(trainer._tasks[task].evaluation_batches("test", 1000)))
        share = 100 * float((network(x).argmax(1) == y).float().mean())
        assert share == pytest.approx(trainer.accuracy[-1, task], abs=1e-4)
