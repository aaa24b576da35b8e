"""What draws images of earlier tasks, and how it learns those of the current one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.counters import LATENT, REPLAY, counter_normal
from hypermask_fast.hypernetworks.chunked import ChunkedHypernetwork
from hypermask_fast.hypernetworks.init import xavier_
from hypermask_fast.hypernetworks.kept import KeptOutputs
from hypermask_fast.methods.hnet.ahead import Update
from hypermask_fast.methods.protocol import ParameterGroup
from hypermask_fast.methods.replay.settings import ReplaySettings
from hypermask_fast.methods.replay.vae import Decoder, Encoder, vae_loss
from hypermask_fast.methods.sharing import Share
from hypermask_fast.optim.lookahead import check_lookahead

REPLAY_OPTIMIZER, REPLAY_EMBEDDING = "replay", "replay_embedding"
"""The optimizers of encoder and hypernetwork, and of the current task's embedding."""


class Replayed(NamedTuple):
    """Images of earlier tasks.

    Attributes:
        x: (t * n, C, H, W) in [0, 1], n of each task, task by task.
        places: int64 (t * n,), the place of each one's task in ``tasks``.
        tasks: Ids of the t tasks, in the order that they were learned in.
        whole: Images of the step, in all processes.
    """

    x: Tensor
    places: Tensor
    tasks: Sequence[int]
    whole: int

    def rows_of_mean(self, share: Share | None) -> float | None:
        """Return what a mean over all processes' rows divides this process's sum by, or None.

        Args:
            share: This process's part of the step, by which its gradient counts.
        """
        return None if share is None else self.whole * share.weight


def mean_cross_entropy(logits: Tensor, targets: Tensor, count: float | None) -> Tensor:
    """Return the mean cross-entropy of rows, 0-d.

    Args:
        logits: (batch, outputs).
        targets: Outputs int64 (batch,), or their shares (batch, outputs).
        count: Rows that the mean is over, where these are a part of them, maybe none; None: these.
    """
    if count is None:
        return F.cross_entropy(logits, targets)
    return F.cross_entropy(logits, targets, reduction="sum") / count


class Replay(nn.Module):
    """A conditional variational autoencoder that replays images of earlier tasks.

    A chunked hypernetwork generates the decoder's weights of each task. It learns as HNET's does:
    the loss of the batch, then the regularizer at the look-ahead, against the decoders as the task
    found them. The encoder belongs to the current task and is not protected. What is replayed comes
    from the decoders that are kept, so that it does not depend on what the current task has
    changed, as if the autoencoder learned a task after the classifier (published).

    Random numbers are functions of torch's seed at construction, the task and the step.

    Args:
        input_shape: (C, H, W) of an image.
        settings: The settings.
        like: A tensor of the device and dtype to use.
    """

    def __init__(self, input_shape: Sequence[int], settings: ReplaySettings, like: Tensor) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.beta, self.latent_dim = settings.replay_beta, settings.latent_dim
        pixels = math.prod(self.input_shape)
        encoder = Encoder(pixels, settings.encoder_hidden, settings.latent_dim)
        self.encoder = encoder.to(device=like.device, dtype=like.dtype)
        self.decoder = Decoder(
            settings.latent_dim, settings.conditions, settings.decoder_hidden, pixels
        )
        self.hypernetwork = ChunkedHypernetwork(
            self.decoder.size,
            embedding_dim=settings.replay_embedding_dim,
            hidden=settings.replay_hidden,
            capacity=settings.capacity,
            activation=settings.replay_activation,
            chunk_size=settings.replay_chunk_size,
            chunk_embedding_dim=settings.replay_chunk_embedding_dim,
            device=like.device,
            dtype=like.dtype,
        )
        xavier_(self.hypernetwork)
        self.hypernetwork.trains_earlier = False
        self.kept = KeptOutputs()
        self.earlier: tuple[int, ...] = ()
        self._seed = torch.initial_seed()

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return what all tasks share, with the encoder, and the embeddings."""
        table = self.hypernetwork.embeddings
        shared = [p for p in self.parameters() if p is not table]
        return [
            ParameterGroup(shared, REPLAY_OPTIMIZER),
            ParameterGroup([table], REPLAY_EMBEDDING, row_sparse=True),
        ]

    def record(self, task: int, earlier: Sequence[int]) -> None:
        """Keep the decoders of earlier tasks, before a task begins."""
        self.kept.record(self.hypernetwork, task, earlier)
        self.earlier = tuple(earlier)

    def clear(self) -> None:
        """Forget them."""
        self.kept.clear()
        self.earlier = ()

    def learn(
        self,
        x: Tensor,
        task: int,
        step: int | Tensor,
        optimizers: Mapping[str, Optimizer],
        share: Share | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Learn from a batch of the current task; return its loss and the regularizer, 0-d.

        Args:
            x: Images in [0, 1], (batch, C, H, W).
            task: The current task.
            step: Its number.
            optimizers: Over :meth:`parameter_groups`, by name.
            share: This process's part of the step, whose rows ``x`` are. Default: all of it.
        """
        own = [optimizers[name] for name in (REPLAY_OPTIMIZER, REPLAY_EMBEDDING)]
        check_lookahead(own[0])
        for optimizer in own:
            optimizer.zero_grad(set_to_none=True)
        update = Update(self.hypernetwork, self.kept, self.beta, own[0])
        pixels = x.flatten(1)
        mean, log_variance = self.encoder.distribution(pixels)
        count, rows = (len(x), slice(None)) if share is None else (share.whole, share.rows)
        noise = self._noise((count, self.latent_dim), task, LATENT, step)[rows]
        z = mean + (log_variance / 2).exp() * noise
        weights = update.logits()
        if share is not None:
            weights = share.exchanged(weights)
        logits = self.decoder(weights[None], z[None], self.kept.current())[0]
        loss = vae_loss(logits, pixels, mean, log_variance)
        output_reg = update.backward(loss, step)
        for optimizer in own:
            optimizer.step()
        return loss.detach(), output_reg

    @torch.no_grad()
    def sample(
        self, batch: int, task: int, step: int | Tensor, share: Share | None = None
    ) -> Replayed | None:
        """Return the replayed images of a step: ceil(batch / t) of each of t earlier tasks.

        None in a first task.

        Args:
            batch: Rows of the current task in the step.
            task: The current task.
            step: Its number.
            share: This process's part of the step: of the images of each task it gets its part, as
                many of all, maybe none. Default: all images.
        """
        decoders, ids = self.kept.logits, self.kept.ids
        if decoders is None or ids is None:
            return None
        count = -(-batch // len(decoders))
        z = self._noise((len(decoders), count, self.latent_dim), task, REPLAY, step)
        whole = len(decoders) * count
        if share is not None:
            rows = share.rows
            z = z[:, count * rows.start // share.whole : count * rows.stop // share.whole]
            count = z.shape[1]
        logits = self.decoder(decoders, z, ids[1:])
        x = logits.sigmoid().view(len(decoders) * count, *self.input_shape)
        places = torch.arange(len(decoders), device=x.device).repeat_interleave(count)
        return Replayed(x, places, self.earlier, whole)

    @torch.no_grad()
    def images(self, task: int, z: Tensor) -> Tensor:
        """Return images (n, C, H, W) in [0, 1] of a task, from its decoder as it is now.

        Args:
            task: The task.
            z: Latent variables (n, latent), of a standard normal distribution.
        """
        ids = torch.tensor([task], device=z.device)
        logits = self.decoder(self.hypernetwork.logits(ids), z[None], ids)
        return logits.sigmoid().view(-1, *self.input_shape)

    def _noise(self, shape: Sequence[int], task: int, purpose: int, step: int | Tensor) -> Tensor:
        table = self.hypernetwork.embeddings
        return counter_normal(shape, self._seed, task, purpose, step, device=table.device).to(table)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values for :meth:`load`."""
        tensors, state = self.kept.state()
        return tensors, {**state, "noise_seed": self._seed}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.kept.load(tensors, state, self.hypernetwork.embeddings.device)
        self.earlier = tuple((state["ids"] or ())[1:])
        self._seed = state["noise_seed"]
