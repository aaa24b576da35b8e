"""Small learners with replay, and steps of their training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hypermask_fast.methods.hnet_r.learner import HNETR
from hypermask_fast.methods.hnet_tir.learner import HNETTIR
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.methods.replay.learner import ReplayLearner
from hypermask_fast.networks import MLP
from hypermask_fast.training.optimizers import make_optimizers
from hypermask_fast.training.settings import TrainingSettings
from hypermask_fast.training.step import TrainingStep

SHAPE = (1, 2, 3)
PIXELS = 6
SMALL: dict[str, Any] = {
    **{"encoder_hidden": (7,), "decoder_hidden": (5, 4), "latent_dim": 3, "conditions": 4},
    **{"replay_embedding_dim": 3, "replay_hidden": (5,), "replay_chunk_size": 11},
    **{"replay_chunk_embedding_dim": 2, "replay_beta": 0.1, "capacity": 4},
}
HNET_SMALL: dict[str, Any] = {
    **{"embedding_dim": 3, "hidden": (6, 5), "chunk_size": 17, "chunk_embedding_dim": 2},
    **{"task_hidden": (6,)},
}


def make(
    cls: type[ReplayLearner] = HNETR,
    tasks: int = 3,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> ReplayLearner:
    """A learner of small layers for images of six pixels, with tasks of two classes."""
    net = MLP(PIXELS, (5,), 2 * tasks).to(dtype)
    own = HNET_SMALL if cls is HNETTIR else {}
    chosen = {"task_heads": "multi", **SMALL, **own, **options}
    learner: ReplayLearner = cls(net, input_shape=SHAPE, **chosen)  # type: ignore[call-arg]
    for task in range(tasks):
        learner.add_task(classes=(2 * task, 2 * task + 1))
    return learner


def batch(learner: ReplayLearner, count: int = 8) -> tuple[Tensor, Tensor]:
    like = learner.replay.hypernetwork.embeddings
    return torch.rand(count, *SHAPE, dtype=like.dtype), torch.randint(2, (count,))


def stepper(learner: ReplayLearner, lr: float = 1e-2) -> TrainingStep:
    return TrainingStep(learner, make_optimizers(learner, TrainingSettings(lr=lr)))


def train(learner: ReplayLearner, task: int, steps: int = 3) -> list[Losses]:
    """Train a task as the trainer does; return the losses of each step."""
    learner.train()
    learner.begin_task(task)
    step = stepper(learner)
    found = [step(*batch(learner), task) for _ in range(steps)]
    learner.end_task()
    return found
