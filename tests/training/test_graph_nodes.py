"""How many launches a captured step is: each takes a GPU some microseconds, whatever it does."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.optim import factored_adam as optim
from hypermask_fast.scenarios import ImageDataset, ImageSet, split
from hypermask_fast.settings.build import make_network
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.graph import GraphedStep
from hypermask_fast.training.optimizers import make_optimizers
from hypermask_fast.training.step import TrainingStep
from tests.support.graph_stand_ins import MetaGraphs, launches_on_meta

MOST = 45


def nodes(preset: str, task: int, **options: object) -> Counter[str]:
    """The launches of a captured step of a preset on images of MNIST's shape, by name.

    Each kernel was launched before in the variant that is captured: none is loaded in a capture.
    """
    config = RunConfig.from_preset(preset, **options)
    images = torch.zeros(6000, 1, 28, 28, dtype=torch.uint8)
    data = ImageSet(images, torch.arange(6000) % 10)
    dataset = ImageDataset("made", data, data, tuple("abcdefghij"))
    tasks = [each.to("meta") for each in split(dataset, classes_per_task=2, crop=4)]
    with torch.device("meta"):
        learner = HyperMask(make_network(config, (1, 28, 28), 2), settings=config.method)
        learner._prepare(torch.zeros(1, 1, 28, 28))
        for j in range(task + 1):
            learner.add_task(tasks[j].name, tasks[j].classes)
            learner.begin_task(j)
            if j < task:
                learner.end_task()
    learner.train()
    optimizers = make_optimizers(learner, config.training)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group |= {"fused": True, "lr": torch.full((), 1e-3, device="meta")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "check_group", lambda group: None)
        variants: set[object] = set()
        launched = launches_on_meta(patch, variants)
        graphs = MetaGraphs()
        step = GraphedStep(True, cuda=graphs)
        step.begin(TrainingStep(learner, optimizers), tasks[task].stream(128), task)
        for number in range(3):
            step(number)
        launched.clear()
        loaded = frozenset(variants)
        step(3)
        assert step.status == "yes"
        assert variants == loaded
    return launched + graphs.watch.captured


@pytest.mark.parametrize("task", [1, 4])
def test_a_captured_step_of_split_mnist_is_few_launches(task: int) -> None:
    found = nodes("split-mnist", task)
    assert found["addmm"] == 3
    assert found["step_runs_kernel"] == 1
    assert found.total() <= MOST, dict(found)
