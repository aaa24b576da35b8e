"""HNET's settings, each with what it means; imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import setting
from hypermask_fast.methods.generated_settings import HeadSettings


@dataclass(frozen=True, kw_only=True)
class HNETSettings(HeadSettings):
    """Settings of :class:`~hypermask_fast.methods.hnet.learner.HNET`."""

    embedding_dim: int = setting(32, "length of a task embedding", low=1)
    hidden: tuple[int, ...] = setting(
        (32, 32),
        "widths of the hypernetwork's hidden layers",
        "with none the head alone is linear in the embeddings",
        low=1,
    )
    activation: str = setting(
        "relu",
        "activation after each hidden layer of the hypernetwork",
        choices=("elu", "relu", "tanh"),
    )
    head: str = setting(
        "chunked",
        "last layer of the hypernetwork: weights in chunks (published), or all at once",
        choices=("full", "chunked"),
    )
    chunk_size: int = setting(8000, "target weights of a chunk (chunked head)", low=1)
    chunk_embedding_dim: int = setting(32, "length of a chunk embedding (chunked head)", low=1)
    embedding_std: float = setting(
        1.0, "standard deviation that task embeddings start with", low=0.0
    )
    chunk_embedding_std: float = setting(
        1.0, "standard deviation that chunk embeddings start with", low=0.0
    )
    embedding_lr: float | None = setting(
        None,
        "learning rate of the current task's embedding, in an optimizer of its own (none: the "
        "run's rate)",
        above=0.0,
    )
    capacity: int = setting(
        128,
        "task embeddings made up front, at least the tasks",
        "statistics of normalization are as many; more tasks, outside of a run, double them",
        low=1,
    )
    task_heads: str = setting(
        "shared",
        "outputs of the target network: the same for all tasks, some for each task (multi), or "
        "those of all tasks so far in the loss (growing)",
        "shared is domain-incremental (CL2); with multi (CL1) and growing (CL3) the network needs "
        "outputs for the classes of all tasks together, and a task's own are what a forward gives",
        choices=("shared", "multi", "growing"),
    )
    beta: float = setting(
        0.01,
        "weight of the hypernetwork's output regularizer",
        "a sum of squares over all weights, divided by t once",
        low=0.0,
    )
    lookahead: bool = setting(
        True,
        "take the regularizer and its gradient where the step of the task's loss would lead",
        "as published; without it, where the hypernetwork is",
    )
    targets: str = setting(
        "full",
        "how the earlier tasks' weights are kept: as they are, in bfloat16 (half the memory), as a "
        "copy of the full head, or recomputed in each step by a copy of the hypernetwork",
        choices=("full", "bfloat16", "frozen_head", "recomputed"),
    )
    regularized_tasks: int | None = setting(
        None,
        "earlier tasks drawn for each step's regularizer (none: all)",
        "drawn by the step and torch's seed at construction; their mean is an unbiased estimate of "
        "the mean over all",
        low=1,
    )
    regularized_outputs: str = setting(
        "all",
        "weights of the output layer in the regularizer: those of all outputs, or of an earlier "
        "task those of its own alone",
        "all other weights are in it in either case; published for MNIST with all, for CIFAR with "
        "own, which needs outputs for each task",
        choices=("all", "own"),
    )
    init: str = setting(
        "xavier",
        "initialisation of the hypernetwork's layers: Xavier-uniform with biases of 0 (published), "
        "or PyTorch's",
        choices=("xavier", "default"),
    )
    bn: str = setting(
        "per_task",
        "batch norm: running statistics for each task, or those of the batch",
        "its scale and shift are generated in either case",
        choices=("per_task", "batch"),
    )

    def check(self) -> None:
        if self.targets == "frozen_head" and self.head != "full":
            raise ConfigError(
                f"targets='frozen_head' needs head='full', not {self.head!r}; use "
                "targets='recomputed'"
            )
        if self.regularized_outputs == "own" and self.task_heads == "shared":
            raise ConfigError(
                "regularized_outputs='own' and task_heads='shared', where tasks have no outputs of "
                "their own; use task_heads='multi' or 'growing'"
            )
        if self.regularized_outputs == "own" and self.targets == "frozen_head":
            raise ConfigError(
                "targets='frozen_head' keeps all outputs and regularized_outputs is 'own'; use "
                "targets='full' or 'recomputed'"
            )

    def outputs(self, *, tasks: int, classes: int) -> int:
        return classes if self.task_heads == "shared" else tasks * classes

    def cheaper(self) -> list[dict[str, Any]]:
        chunked = {"head": "chunked"}
        if self.targets == "frozen_head":
            chunked["targets"] = "full"
        return [{"targets": "bfloat16"}, {"targets": "recomputed"}, chunked]
