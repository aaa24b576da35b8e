"""The slim ResNet-18 of Lopez-Paz and Ranzato (2017), as SupSup and ExSSNeT use it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.fields import check_value
from hypermask_fast.networks.remade import Remade

_MAPS = (20, 40, 80, 160)


class _Block(nn.Module):
    def __init__(self, maps: int, channels: int, stride: int, track_running_stats: bool) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return nn.BatchNorm2d(channels, affine=False, track_running_stats=track_running_stats)

        self.conv1 = nn.Conv2d(maps, channels, 3, stride, padding=1, bias=False)
        self.bn1 = norm()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm()
        self.shortcut = nn.Sequential()
        if stride > 1 or maps != channels:
            self.shortcut.append(nn.Conv2d(maps, channels, 1, stride, bias=False))
            self.shortcut.append(norm())

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class GEMResNet18(Remade):
    """ResNet-18 with 20, 40, 80 and 160 maps, without biases and without scales in its batch norm.

    A 3 x 3 convolution, four groups of two blocks of two convolutions (stride 2 at the start of the
    second, third and fourth), global average pooling and a linear classifier: 1,090,940 weights
    with 5 classes. Published with a 1 x 1 convolution as the classifier, the same function.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images. Default 3.
        track_running_stats: Whether batch norm keeps running statistics for evaluation. Default
            True.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, track_running_stats: bool = True
    ) -> None:
        super().__init__()
        for name, size in (("num_classes", num_classes), ("in_channels", in_channels)):
            check_value(name, int, size, low=1)
        maps = _MAPS[0]
        self.conv = nn.Conv2d(in_channels, maps, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(maps, affine=False, track_running_stats=track_running_stats)
        blocks = []
        for group, channels in enumerate(_MAPS):
            for index in range(2):
                stride = 2 if group > 0 and index == 0 else 1
                blocks.append(_Block(maps, channels, stride, track_running_stats))
                maps = channels
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(maps, num_classes, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """Return the pooled maps, (batch, 160), of x (batch, in_channels, H, W)."""
        x = F.relu(self.bn(self.conv(x)))
        return self.blocks(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, num_classes), of x (batch, in_channels, H, W)."""
        return self.classifier(self.features(x))
