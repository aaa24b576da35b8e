"""Which tensors of a learner have a part in each process, where processes share its head."""

from __future__ import annotations

from hypermask_fast.head.shard import RowShard
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.generated import GeneratedLearner


def shard_of(learner: Learner) -> RowShard | None:
    """Return the rows of a learner's head that this process holds; None: all, or it has no head."""
    return learner.hypernetwork.shard if isinstance(learner, GeneratedLearner) else None


def divided_weights(learner: Learner) -> dict[str, RowShard]:
    """Return the names in a ``state_dict`` of tensors with a part in each process: rows."""
    shard = shard_of(learner)
    names = ("hypernetwork.head.weight", "hypernetwork.head.bias")
    return {} if shard is None else dict.fromkeys(names, shard)
