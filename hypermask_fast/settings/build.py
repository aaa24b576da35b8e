"""From settings to a new learner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import make_network
from hypermask_fast.settings.config import RunConfig


def make_learner(config: RunConfig, input_shape: Sequence[int], num_classes: int) -> HyperMask:
    """Return a new learner, on the default device.

    Args:
        config: The settings.
        input_shape: Of one input.
        num_classes: Outputs of the target network.

    Raises:
        ConfigError: A setting does not fit.
    """
    options: dict[str, Any] = {}
    if config.network == "mlp":
        options["hidden"] = config.mlp_hidden
    if config.network == "resnet":
        options |= {
            "n": config.resnet_n,
            "k": config.resnet_k,
            "track_running_stats": config.bn != "batch",
        }
    return HyperMask(
        make_network(config.network, input_shape, num_classes, **options),
        embedding_dim=config.embedding_dim,
        hidden=config.hidden,
        sparsity=config.sparsity,
        beta=config.beta,
        lam=config.lam,
        masked_l1=config.masked_l1,
        train_target=config.train_target,
        ramp=config.ramp,
        bn=config.bn,
        dropout=config.dropout,
        head=config.head,
        chunk_size=config.chunk_size,
        chunk_embedding_dim=config.chunk_embedding_dim,
        init=config.init,
        capacity=config.capacity,
        targets=config.targets,
        regularized_tasks=config.regularized_tasks,
    )
