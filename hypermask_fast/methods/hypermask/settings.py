"""HyperMask's settings, each with what it means; imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypermask_fast.errors import ConfigError, warn_caller
from hypermask_fast.fields import setting
from hypermask_fast.methods.generated_settings import HeadSettings


@dataclass(frozen=True, kw_only=True)
class HyperMaskSettings(HeadSettings):
    """Settings of :class:`~hypermask_fast.methods.hypermask.learner.HyperMask`."""

    embedding_dim: int = setting(48, "length of a task embedding", low=1)
    hidden: tuple[int, ...] = setting((100,), "widths of the hypernetwork's hidden layers", low=1)
    activation: str = setting(
        "elu",
        "activation after each hidden layer of the hypernetwork",
        choices=("elu", "relu", "tanh"),
    )
    head: str = setting(
        "full",
        "last layer of the hypernetwork: all mask entries, or in chunks",
        choices=("full", "chunked"),
    )
    chunk_size: int = setting(8000, "mask entries of a chunk (chunked head)", low=1)
    chunk_embedding_dim: int = setting(32, "length of a chunk embedding (chunked head)", low=1)
    init: str = setting(
        "default",
        "initialization of the hypernetwork: PyTorch's (published) or hyperfan",
        choices=("default", "hyperfan"),
    )
    mask_init: str = setting(
        "published",
        "masks at the start: as the hypernetwork is initialized; or open, near 1, to begin with a "
        "network that was trained before",
        "open: every mask is at least 0.99, so that the first forward is nearly that of the given "
        "network; where the sparsity is not 0, the smallest weights of each tensor are removed "
        "first (with ``ramp``, not before the first task's steps)",
        choices=("published", "open"),
    )
    capacity: int = setting(
        128,
        "task embeddings made up front, at least the tasks",
        "rows of normalization are as many; more tasks, outside of a run, double them: a "
        "``torch.optim`` optimizer with a state must then be made anew, a FactoredAdam goes on",
        low=1,
    )
    targets: str = setting(
        "full",
        "how the earlier tasks' logits are kept: as they are, in bfloat16 (half the memory), or as "
        "a copy of the full head (less where the tasks outnumber the last width in hidden)",
        "a logit that rounds to its bfloat16 counts as unchanged; memory and time of a copied head "
        "do not grow with the tasks, and on a CPU it saves time where they outnumber about twice "
        "that width",
        choices=("full", "bfloat16", "frozen_head"),
    )
    regularized_tasks: int | None = setting(
        None,
        "earlier tasks drawn for each step's output regularizer (none: all)",
        "drawn by the step and torch's seed at construction, an unbiased estimate of the mean over "
        "all, and the other tasks' embeddings get no gradient in that step; saves time where the "
        "head's passes are compiled or with a frozen head, else the logits of all tasks are still "
        "computed, for their bits",
        low=1,
    )
    earlier: str = setting(
        "regularized",
        "tasks that were learned: kept by the regularizers, or frozen: they cannot change",
        "frozen: :meth:`end_task` keeps the task's masked weights, the memory of the target "
        "network for each task, its outputs have the same bits ever after, and later tasks are "
        "learned without output regularizer and L1 drift",
        choices=("regularized", "frozen"),
    )
    sparsity: float = setting(
        0.0,
        "percent of each tensor's mask entries that are zero",
        "at 0 the mask only scales",
        low=0.0,
        high=100.0,
    )
    ramp: bool = setting(
        True,
        "raise the sparsity from 0 linearly during the first task",
        "over the steps that :meth:`begin_task` is given, all of the task's from Trainer",
    )
    beta: float = setting(
        0.01, "weight of the hypernetwork's output regularizer, divided by t squared", low=0.0
    )
    lam: float = setting(
        1e-3, "weight of the L1 drift of the target weights", "a sum over all of them", low=0.0
    )
    masked_l1: bool = setting(True, "multiply the L1 drift by the mask")
    train_target: bool = setting(True, "train the target network's weights")
    bn: str = setting(
        "per_task",
        "batch norm: statistics of the batch (published), per task, or frozen",
        "batch: shared parameters, and the batch's statistics also in evaluation; per_task: "
        "normalization layers have parameters and statistics for each task, and the statistics "
        "move only while that task is learned; frozen: as they are",
        choices=("batch", "per_task", "frozen"),
    )
    dropout: str = setting(
        "always",
        "when dropout acts: always, in a task's first step only (published), or never",
        "dropout modules, not calls of ``F.dropout``",
        choices=("always", "first_step", "off"),
    )

    def check(self) -> None:
        if self.mask_init == "open" and self.init != "default":
            raise ConfigError(
                f"mask_init='open' starts the head itself, as init={self.init!r} does; use "
                "init='default'"
            )
        if self.mask_init == "open" and self.head != "full" and self.sparsity > 0:
            raise ConfigError(
                f"mask_init='open' cannot choose the smallest weights for sparsity={self.sparsity} "
                f"with head={self.head!r}, whose chunks share a bias; use head='full' or sparsity=0"
            )
        if 0 < self.sparsity < 1:
            warn_caller(
                f"sparsity={self.sparsity} is in percent: it removes {self.sparsity} of 100 mask "
                f"entries; give {100 * self.sparsity:g} if a fraction was meant"
            )

    @property
    def divides_head(self) -> bool:
        return self.head == "full"

    def cheaper(self) -> list[dict[str, Any]]:
        chunked = {"head": "chunked"}
        if self.targets == "frozen_head":
            chunked["targets"] = "full"
        return [{"targets": "bfloat16"}, {"targets": "frozen_head"}, chunked]
