"""The score of tasks by a classifier of tasks that a learner has (HNET+TIR)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError
from hypermask_fast.inference.base import Evidence, Score, check_finite
from hypermask_fast.methods.base import Learner


@dataclass(frozen=True)
class TIR(Score):
    """The log-probability that the learner's classifier of tasks gives, among those that compete.

    The class is what the chosen task's network says.
    """

    def evidence(
        self, learner: Learner, x: Tensor, tasks: Sequence[int], batch_size: int
    ) -> Evidence:
        logits = getattr(learner, "task_logits", None)
        if logits is None:
            raise ConfigError(
                f"score='tir' needs a classifier of tasks and {type(learner).__name__} has none; "
                "train with method='hnet-tir', or use another score"
            )
        rows = torch.cat([logits(part, tasks) for part in x.split(batch_size)])
        scores = rows.double().log_softmax(1).t()
        check_finite(scores, tasks, "score")
        return Evidence(scores, None)
