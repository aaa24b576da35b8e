"""The convolutional networks of Zenke et al. (2017), as HyperMask and HNET use them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.fields import check_value
from hypermask_fast.networks.remade import Remade


def _check(num_classes: int, in_channels: int, dropout: bool) -> None:
    check_value("num_classes", int, num_classes, low=1)
    check_value("in_channels", int, in_channels, low=1)
    check_value("dropout", bool, dropout)


def _dropout2d(dropout: bool) -> nn.Module:
    return nn.Dropout2d(0.25) if dropout else nn.Identity()


class _Stem(nn.Module):
    """Two stages of two 3 x 3 convolutions (padded, unpadded), a 2 x 2 max-pool and dropout."""

    def __init__(self, in_channels: int, widths: tuple[int, int], dropout: bool) -> None:
        super().__init__()
        first, second = widths
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, first, 3)
        self.drop1 = _dropout2d(dropout)
        self.conv3 = nn.Conv2d(first, second, 3, padding=1)
        self.conv4 = nn.Conv2d(second, second, 3)
        self.drop2 = _dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = self.drop1(F.max_pool2d(x, 2))
        x = F.relu(self.conv4(F.relu(self.conv3(x))))
        x = self.drop2(F.max_pool2d(x, 2))
        return x.flatten(1)


class ZenkeNet(Remade):
    """Convolutions of 32, 32, 64 and 64 maps, a hidden layer of 512, a classifier; 32 x 32 images.

    The published run has dropout active only in the first step of a task: that is the training
    loop's doing, through ``train()`` and ``eval()``, not this module's.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images. Default 3.
        dropout: Whether to drop 0.25 of the maps after each pool and 0.5 of the hidden units.
            Default True.

    Raises:
        ConfigError: If a number is no positive integer.
    """

    image_size = 32

    def __init__(self, num_classes: int, in_channels: int = 3, dropout: bool = True) -> None:
        super().__init__()
        _check(num_classes, in_channels, dropout)
        self.stem = _Stem(in_channels, (32, 64), dropout)
        self.hidden = nn.Linear(64 * 6 * 6, 512)
        self.drop = nn.Dropout(0.5) if dropout else nn.Identity()
        self.classifier = nn.Linear(512, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the classifier's input, (batch, 512), of x (batch, in_channels, 32, 32)."""
        return self.drop(F.relu(self.hidden(self.stem(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, num_classes), of x (batch, in_channels, 32, 32)."""
        return self.classifier(self.features(x))


class ZenkeNet64(Remade):
    """Four convolutions of 64 maps and a classifier; 64 x 64 images (Tiny ImageNet).

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images. Default 3.
        dropout: Whether to drop 0.25 of the maps after each pool. Default True.

    Raises:
        ConfigError: If a number is no positive integer.
    """

    image_size = 64

    def __init__(self, num_classes: int, in_channels: int = 3, dropout: bool = True) -> None:
        super().__init__()
        _check(num_classes, in_channels, dropout)
        self.stem = _Stem(in_channels, (64, 64), dropout)
        self.classifier = nn.Linear(64 * 14 * 14, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the flattened maps, (batch, 12544), of x (batch, in_channels, 64, 64)."""
        return self.stem(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, num_classes), of x (batch, in_channels, 64, 64)."""
        return self.classifier(self.features(x))
