"""A variational autoencoder, with a decoder of weights that are generated for each task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.networks.mlp import MLP


def vae_loss(logits: Tensor, x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the loss of an autoencoder, 0-d: reconstruction and divergence, each per pixel.

    The mean binary cross-entropy over pixels and rows, and the divergence of the encoder's normal
    distribution from the standard one, summed over latent variables, averaged over rows and divided
    by the number of pixels (von Oswald et al. 2020, after van de Ven and Tolias 2019).

    Args:
        logits: What the decoder puts out, (batch, pixels).
        x: The images in [0, 1], (batch, pixels).
        mean, log_variance: What the encoder puts out, (batch, latent) each.
    """
    reconstruction = F.binary_cross_entropy_with_logits(logits, x)
    divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum(1).mean() / 2
    return reconstruction + divergence / x.shape[1]


@torch.no_grad()
def xavier_layers_(net: nn.Module) -> None:
    """Initialise linear layers in place as HNET's replay does: Xavier-uniform, biases 0."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class Encoder(MLP):
    """From images to the mean and log variance of latent variables.

    Args:
        pixels: Of an image.
        hidden: Width of each hidden layer.
        latent: Latent variables.
    """

    def __init__(self, pixels: int, hidden: Sequence[int], latent: int) -> None:
        super().__init__(pixels, hidden, 2 * latent)
        xavier_layers_(self)

    def distribution(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, (batch, latent) each, of x (batch, ...)."""
        mean, log_variance = self(x).chunk(2, 1)
        return mean, log_variance


class Decoder:
    """From latent variables to images, by weights that are given; it has none.

    Args:
        latent: Latent variables.
        conditions: Length of the one-hot code of the task that it reads beside them; 0 for none.
        hidden: Width of each hidden layer.
        pixels: Of an image.

    Attributes:
        size: N, the number of its weights.
    """

    def __init__(self, latent: int, conditions: int, hidden: Sequence[int], pixels: int) -> None:
        widths = [latent + conditions, *hidden, pixels]
        self.conditions = conditions
        self._layers = [(fan_out, fan_in) for fan_in, fan_out in pairwise(widths)]
        self._sizes = [size for out, into in self._layers for size in (out * into, out)]
        self.size = sum(self._sizes)

    def __call__(self, weights: Tensor, z: Tensor, tasks: Tensor) -> Tensor:
        """Return the logits of images (k, n, pixels) of k tasks in one batched pass.

        Args:
            weights: Of each task, (k, N) or longer.
            z: Latent variables (k, n, latent).
            tasks: int64 (k,), their ids, for the code.
        """
        if self.conditions:
            code = (tasks[:, None] == torch.arange(self.conditions, device=z.device)).to(z)
            z = torch.cat((z, code[:, None].expand(-1, z.shape[1], -1)), 2)
        parts = weights[:, : self.size].split(self._sizes, 1)
        for i, (weight, bias) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
            matrix = weight.view(len(weights), *self._layers[i])
            z = torch.baddbmm(bias[:, None], z if not i else F.relu(z), matrix.mT)
        return z
