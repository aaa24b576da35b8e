"""The settings of replay, each with what it means; imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import setting
from hypermask_fast.methods.settings import MethodSettings


@dataclass(frozen=True, kw_only=True)
class ReplaySettings(MethodSettings):
    """Settings of the autoencoder whose images are replayed, and of their share in a loss."""

    capacity: int = setting(
        128,
        "task embeddings made up front, at least the tasks",
        "more tasks, outside of a run, double them",
        low=1,
    )
    encoder_hidden: tuple[int, ...] = setting(
        (400, 400), "widths of the encoder's hidden layers, which is not protected", low=1
    )
    decoder_hidden: tuple[int, ...] = setting(
        (250, 350), "widths of the decoder's hidden layers", low=1
    )
    latent_dim: int = setting(100, "latent variables", low=1)
    conditions: int = setting(
        0,
        "length of the one-hot code of the task that the decoder reads beside the latent "
        "variables, at least the tasks (0: none)",
        "the decoder's weights are the task's own in any case",
        low=0,
    )
    replay_embedding_dim: int = setting(
        96, "length of a task embedding of the decoder's hypernetwork", low=1
    )
    replay_hidden: tuple[int, ...] = setting(
        (10, 10), "widths of the hidden layers of the decoder's hypernetwork", low=1
    )
    replay_activation: str = setting(
        "elu",
        "activation after each hidden layer of the decoder's hypernetwork",
        choices=("elu", "relu", "tanh"),
    )
    replay_chunk_size: int = setting(50_000, "decoder weights of a chunk", low=1)
    replay_chunk_embedding_dim: int = setting(
        96, "length of a chunk embedding of the decoder's hypernetwork", low=1
    )
    replay_beta: float = setting(
        0.01, "weight of the output regularizer of the decoder's hypernetwork", low=0.0
    )
    replay_weight: float = setting(
        0.5, "share of the replayed images in the loss that they are in", low=0.0, high=1.0
    )

    @property
    def unit_inputs(self) -> bool:
        return True

    def check_run(self, *, tasks: int, moments: str) -> None:
        super().check_run(tasks=tasks, moments="float32")
        if moments != "float32":
            raise ConfigError(
                f"moments={moments!r} needs full heads alone, and that of the decoder's "
                "hypernetwork is chunked; use moments='float32'"
            )
        if self.capacity < tasks:
            raise ConfigError(
                f"capacity={self.capacity} is less than tasks={tasks}; raise the capacity"
            )
        if 0 < self.conditions < tasks:
            raise ConfigError(
                f"conditions={self.conditions} is less than tasks={tasks}; give as many, or 0 for "
                "none"
            )
