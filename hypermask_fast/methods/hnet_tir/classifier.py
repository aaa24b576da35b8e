"""The classifier from inputs to tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hypermask_fast.methods.protocol import ParameterGroup
from hypermask_fast.methods.replay.replay import Replayed, mean_cross_entropy
from hypermask_fast.methods.replay.vae import xavier_layers_
from hypermask_fast.networks.mlp import MLP
from hypermask_fast.optim.rows import take_rows
from hypermask_fast.tables import add_rows

TASK_CLASSIFIER = "task_classifier"
"""Its optimizer."""


class TaskClassifier(MLP):
    """An MLP with an output for each task, of which only those that are learned take part.

    Args:
        pixels: Numbers in an input.
        hidden: Width of each hidden layer.
        capacity: Outputs, which can grow.
    """

    def __init__(self, pixels: int, hidden: Sequence[int], capacity: int) -> None:
        super().__init__(pixels, hidden, capacity)
        xavier_layers_(self)

    @torch.no_grad()
    def grow(self, capacity: int) -> None:
        """Add outputs, of zeros."""
        for table in (self.classifier.weight, self.classifier.bias):
            more = capacity - len(table)
            add_rows(table, table.new_zeros(more, *table.shape[1:]))  # type: ignore[arg-type]
        self.classifier.out_features = capacity

    def logits(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Return the logits (batch, k) of tasks, int64 (k,), for x (batch, ...)."""
        weight, bias = (
            take_rows(table, tasks) for table in (self.classifier.weight, self.classifier.bias)
        )
        return F.linear(self.features(x), weight, bias)

    def loss(
        self,
        x: Tensor,
        replayed: Replayed,
        tasks: Tensor,
        weight: float,
        count: float | None = None,
    ) -> Tensor:
        """Return the cross-entropy of the current task's rows and of replayed ones, mixed, 0-d.

        Args:
            x: Rows of the current task.
            replayed: Rows of the earlier ones.
            tasks: int64 (1 + t,), ids of the current task and the earlier ones.
            weight: Share of the replayed rows.
            count: Replayed rows that their mean is over, where these are a part. Default: these.
        """
        logits = self.logits(torch.cat((x, replayed.x.to(x))), tasks)
        current = F.cross_entropy(logits[: len(x)], replayed.places.new_zeros(len(x)))
        earlier = mean_cross_entropy(logits[len(x) :], replayed.places + 1, count)
        return (1 - weight) * current + weight * earlier

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the hidden layers, and the outputs, which are rows of tables."""
        return [
            ParameterGroup(list(self.hidden.parameters()), TASK_CLASSIFIER),
            ParameterGroup(list(self.classifier.parameters()), TASK_CLASSIFIER, row_sparse=True),
        ]
