"""The CIFAR residual network of He et al. (2016, 4.2), in the form that HyperMask and HNET use."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.fields import check_value
from hypermask_fast.networks.remade import Remade


def _shortcut(x: Tensor, channels: int, stride: int) -> Tensor:
    """Subsample x by stride and pad it with zero channels, half before and half after.

    Args:
        x: (batch, C, H, W) with C <= channels.
        channels: Channels of the result; an odd difference puts one more after than before.
        stride: Keep every stride-th row and column.
    """
    missing = channels - x.shape[1]
    before = missing // 2
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, missing - before))


class _Block(nn.Module):
    def __init__(
        self, in_channels: int, channels: int, stride: int, bias: bool, track_running_stats: bool
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(channels, track_running_stats=track_running_stats)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(channels, track_running_stats=track_running_stats)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + _shortcut(x, y.shape[1], self.stride))


class ResNet(Remade):
    """Residual network of 6n + 2 layers with parameter-free shortcuts.

    A 3 x 3 convolution to 16 maps, three groups of n two-convolution blocks with 16k, 32k and 64k
    maps (stride 2 at the start of the second and third), batch norm after every convolution, global
    average pooling and a linear classifier. HyperMask's "ResNet-20" is n = 3, k = 2, HNET's
    ResNet-32 is n = 5, k = 1. The first convolution stays at 16 maps for every k: this is not a
    Wide ResNet.

    Args:
        n: Blocks a group.
        k: Widening factor of the groups.
        num_classes: Outputs.
        bias: Whether the convolutions have biases (the published counts include them); the
            classifier always has one. Default True.
        in_channels: Channels of the images. Default 3.
        track_running_stats: Whether batch norm keeps running statistics for evaluation. The
            published runs keep none and use the batch's at all times. Default False.

    Raises:
        ConfigError: If a number is no positive integer.
    """

    def __init__(
        self,
        n: int,
        k: int,
        num_classes: int,
        bias: bool = True,
        *,
        in_channels: int = 3,
        track_running_stats: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"n": n, "k": k, "num_classes": num_classes, "in_channels": in_channels}
        for name, size in sizes.items():
            check_value(name, int, size, low=1)
        check_value("bias", bool, bias)
        check_value("track_running_stats", bool, track_running_stats)
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=bias)
        self.bn = nn.BatchNorm2d(16, track_running_stats=track_running_stats)
        blocks = []
        maps = 16
        for group, channels in enumerate((16 * k, 32 * k, 64 * k)):
            for index in range(n):
                stride = 2 if group > 0 and index == 0 else 1
                blocks.append(_Block(maps, channels, stride, bias, track_running_stats))
                maps = channels
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(maps, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the pooled maps, (batch, 64k), of x (batch, in_channels, H, W)."""
        x = F.relu(self.bn(self.conv(x)))
        return self.blocks(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, num_classes), of x (batch, in_channels, H, W)."""
        return self.classifier(self.features(x))
