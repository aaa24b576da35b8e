"""The published loops that inference is timed against do what the package does."""

from __future__ import annotations

import torch

from benchmarks.inference import in_batches, logits_of, one_by_one
from hypermask_fast.networks import MLP
from tests.support.inference_cases import learned


@torch.no_grad()
def test_the_published_loops_find_the_same_tasks() -> None:
    learner = learned(net=MLP(5, (6, 4), 2), sparsity=30.0, classes=[(0, 1)] * 3)
    x = 2 * torch.randn(17, 5).double()
    for task in range(3):
        torch.testing.assert_close(logits_of(learner, x, task), learner(x, task))
    tasks = learner.predict(x).tasks.tolist()
    assert in_batches(learner, x) == tasks
    assert one_by_one(learner, x) == tasks
