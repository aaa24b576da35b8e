"""Logits of a task's first test examples, by which its drift is measured later."""

from __future__ import annotations

import torch
from torch import Tensor

from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.evaluating import evaluating
from hypermask_fast.scenarios import Task

ROWS = 256
"""Test examples whose logits are kept, at most."""


def logits_of(learner: Learner, task_id: int, task: Task) -> Tensor:
    """Return the logits of a task's first test examples, float32 (rows, classes), on the CPU.

    They run as one batch, as the accuracy's do; random state and learner stay as they are.

    Args:
        learner: The learner, which has the task.
        task_id: The task.
        task: Its examples, on the learner's device.
    """
    x, _ = next(iter(task.evaluation_batches("test", ROWS)))
    with evaluating(learner):
        logits: Tensor = learner(x, task=task_id)[:, : task.num_classes]
    return logits.to(torch.float32).cpu()
