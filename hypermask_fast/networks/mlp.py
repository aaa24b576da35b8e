"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.fields import check_value
from hypermask_fast.networks.remade import Remade


class MLP(Remade):
    """Fully connected ReLU network on the flattened input.

    The published sizes are 784-400-400-C (Split MNIST) and 1024-1000-1000-C (Permuted MNIST, whose
    images are padded to 32 x 32).

    Args:
        in_features: Numbers in one input.
        hidden: Width of each hidden layer; empty for a linear classifier.
        num_classes: Outputs.
        bias: Whether every layer has a bias. Default True.

    Raises:
        ConfigError: If a width is no positive integer.
    """

    def __init__(
        self, in_features: int, hidden: Sequence[int], num_classes: int, *, bias: bool = True
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "num_classes": num_classes}
        for name, size in sizes.items():
            check_value(name, int, size, low=1)
        widths = [in_features, *check_value("hidden", tuple, hidden, low=1)]
        check_value("bias", bool, bias)
        self.hidden = nn.ModuleList(
            nn.Linear(fan_in, fan_out, bias=bias) for fan_in, fan_out in pairwise(widths)
        )
        self.classifier = nn.Linear(widths[-1], num_classes, bias=bias)

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden activations, (batch, hidden[-1]), of x (batch, ...)."""
        x = x.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, num_classes), of x (batch, ...)."""
        return self.classifier(self.features(x))


class LeNet300_100(MLP):
    """784-300-100-C without biases, for 28 x 28 images (SupSup, ExSSNeT).

    Published as 1 x 1 convolutions, which are the same function.
    """

    in_features = 28 * 28

    def __init__(self, num_classes: int) -> None:
        super().__init__(self.in_features, (300, 100), num_classes, bias=False)


class FC1024(MLP):
    """Two hidden layers of 1024 without biases (SupSup)."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, (1024, 1024), num_classes, bias=False)
