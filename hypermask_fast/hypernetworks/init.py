"""Initialisations of hypernetworks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hypermask_fast.errors import ConfigError
from hypermask_fast.hypernetworks.chunked import ChunkedHypernetwork
from hypermask_fast.hypernetworks.full import Hypernetwork


class Fan(NamedTuple):
    """What the hyperfan initialisation must know of a target tensor."""

    size: int
    fan_in: int
    is_bias: bool
    layer_has_bias: bool


@torch.no_grad()
def xavier_(
    hypernetwork: Hypernetwork,
    *,
    embedding_std: float = 1.0,
    chunk_embedding_std: float = 1.0,
    layers: bool = True,
) -> None:
    """Initialise in place as HNET (von Oswald et al. 2020) does.

    Matrices are Xavier-uniform, vectors 0, and embeddings of tasks and chunks normal.

    Args:
        hypernetwork: With any head.
        layers: False: the embeddings alone. Default True.
        embedding_std, chunk_embedding_std: Standard deviations of the embeddings. Default 1.
    """
    for layer in (*hypernetwork.trunk, hypernetwork.head):
        if layers and isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    nn.init.normal_(hypernetwork.embeddings, std=embedding_std)
    if isinstance(hypernetwork, ChunkedHypernetwork):
        nn.init.normal_(hypernetwork.chunk_embeddings, std=chunk_embedding_std)


@torch.no_grad()
def hyperfan_(hypernetwork: Hypernetwork, fans: Sequence[Fan]) -> None:
    """Initialise in place with hyperfan-in (Chang et al. 2020): the logits get a fan-in scale.

    The rows of a weight are uniform with variance ``2 / (c m d)``, those of a bias with
    ``1 / m``, where m is the width of the last hidden layer, d the target's fan-in and c is 2
    in a layer with a bias, else 1. The trunk is Kaiming-uniform, biases are 0.

    Args:
        hypernetwork: With a full head.
        fans: Of the target tensors, in the order of the outputs.

    Raises:
        ConfigError: The head is chunked.
    """
    if isinstance(hypernetwork, ChunkedHypernetwork):
        raise ConfigError(
            "init 'hyperfan' needs a head with a row for each target entry and this one is "
            "chunked; use head='full' or init='default'"
        )
    for layer in hypernetwork.trunk:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    head = hypernetwork.head
    nn.init.zeros_(head.bias)
    low = 0
    for fan in fans:
        variance = 1 / head.in_features
        if not fan.is_bias:
            variance *= (1 if fan.layer_has_bias else 2) / fan.fan_in
        bound = math.sqrt(3 * variance)
        hypernetwork.draw_rows_(low, low + fan.size, partial(nn.init.uniform_, a=-bound, b=bound))
        low += fan.size


_OPEN = (3.0, 4.0)
_OPEN_SCALE = 0.05


@torch.no_grad()
def open_(hypernetwork: Hypernetwork, weights: Sequence[Tensor]) -> None:
    """Change a new hypernetwork in place so that the masks of all tasks start near 1.

    The head's bias goes from 3 for the smallest weight of a tensor, by magnitude, to 4 for the
    largest, in even steps (3 for all of a chunked head, whose chunks share it), and its matrix is
    multiplied by 0.05: ``|tanh z|`` is 0.995 to 0.9993, but for the 0.02 or so that an untrained
    embedding adds to z. What a percentile removes are then the smallest weights.

    Args:
        hypernetwork: New, as PyTorch initialises it.
        weights: The target's tensors, in the order of the outputs.
    """
    head, (low, high) = hypernetwork.head, _OPEN
    head.weight *= _OPEN_SCALE
    if isinstance(hypernetwork, ChunkedHypernetwork):
        head.bias.fill_(low)
        return
    rows = []
    for weight in weights:
        order = weight.detach().flatten().abs().argsort(stable=True)
        rows.append(torch.empty_like(order, dtype=head.bias.dtype))
        count, dtype = len(order), head.bias.dtype
        rows[-1][order] = torch.linspace(low, high, count, dtype=dtype, device=order.device)
    head.bias.copy_(hypernetwork.own_rows(torch.cat(rows)))
