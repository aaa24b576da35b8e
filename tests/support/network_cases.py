"""Networks with every kind of module that has parameters, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hypermask_fast.vision import import_torchvision

CLASSES = 3
IMAGE = (3, 3, 32, 32)
WORDS, LENGTH = 11, 7


def resnet() -> nn.Module:
    import_torchvision()
    from torchvision.models.resnet import BasicBlock, ResNet

    net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
    # The wider stages hold 98 % of the parameters.
    net.layer2 = net.layer3 = net.layer4 = nn.Identity()
    net.fc = nn.Linear(64, CLASSES)
    return net


def convnext() -> nn.Module:
    import_torchvision()
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    return ConvNeXt(blocks, layer_scale=0.5, num_classes=CLASSES)


def vit() -> nn.Module:
    import_torchvision()
    from torchvision.models.vision_transformer import VisionTransformer

    net = VisionTransformer(32, 16, 2, 2, 16, 24, num_classes=CLASSES)
    # Its head begins as zero.
    nn.init.normal_(net.get_parameter("heads.head.weight"))
    return net


def swin() -> nn.Module:
    import_torchvision()
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([2, 2], 8, [1, 1], [2, 4], [4, 4], num_classes=CLASSES)


class Recurrent(nn.Module):
    """A classifier of sequences of words by their last state."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 6, padding_idx=0)
        self.body = kind(6, 5, 2, batch_first=True, bidirectional=True, **options)
        self.out = nn.Linear(2 * (options.get("proj_size") or 5), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.words(x))[0][:, -1])


class Cells(nn.Module):
    """A classifier of sequences of words whose recurrent cells are stepped one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 6)
        self.cells = nn.ModuleList([nn.LSTMCell(6, 5), nn.GRUCell(5, 5), nn.RNNCell(5, 4)])
        self.out = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        lstm = gru = rnn = None
        for word in self.words(x).unbind(1):
            lstm = self.cells[0](word, lstm)
            gru = self.cells[1](lstm[0], gru)
            rnn = self.cells[2](gru, rnn)
        return self.out(rnn)


class Transformer(nn.Module):
    """A classifier of sequences of words with PyTorch's own encoder."""

    def __init__(self, *, tied: bool = False, norm_first: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 8)
        self.places = nn.Parameter(torch.randn(LENGTH, 8))
        layer = nn.TransformerEncoderLayer(
            8, 2, 12, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
        self.out = nn.Linear(8, WORDS if tied else CLASSES)
        if tied:
            self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.words(x) + self.places).mean(1))


class Attention(nn.Module):
    """Attention with keys of another width, keys and values of its own, and masked places."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 8)
        self.keys = nn.EmbeddingBag(WORDS, 6)
        self.attend = nn.MultiheadAttention(
            8, 2, batch_first=True, kdim=6, vdim=6, add_bias_kv=True
        )
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        keys = torch.stack([self.keys(word[:, None]) for word in x.unbind(1)], 1)
        found, _ = self.attend(self.words(x), keys, keys, key_padding_mask=x == 1)
        return self.out(found.mean(1))


class Signals(nn.Module):
    """Convolutions of one and three dimensions, and transposed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(3, 4, 3, padding=1)
        self.up_one = nn.ConvTranspose1d(4, 4, 2, stride=2)
        self.two = nn.ConvTranspose2d(4, 2, 2, bias=False)
        self.three = nn.Conv3d(1, 3, (1, 2, 2), padding_mode="circular", padding=(0, 1, 1))
        self.up_three = nn.ConvTranspose3d(3, 2, 2)
        self.slope = nn.PReLU(2)
        self.pair = nn.Bilinear(2, 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up_one(self.one(x)).relu()
        x = self.two(x[..., None]).relu()
        x = self.slope(self.up_three(self.three(x[:, None]))).mean((2, 3, 4))
        return self.pair(x, x.tanh())


class Scaled(nn.Module):
    """A branch that runs for some inputs, parameters in a list and a dict, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shifts = nn.ParameterList([torch.randn(6), torch.randn(6)])
        self.gains = nn.ParameterDict({"low": torch.randn(6), "high": torch.randn(6)})
        self.stem = nn.Linear(5, 6)
        self.side = nn.Linear(5, 6, bias=False)
        self.out = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x) + self.shifts[0])
        if x.sum() > 0:
            h = h + F.linear(x, self.side.weight) * self.gains["high"]
        else:
            h = h * self.gains["low"] + self.shifts[1]
        return self.out(h) * self.scale


class Repeated(nn.Module):
    """A network whose middle, which reads a parameter of its own, a checkpoint repeats."""

    def __init__(self, how: bool | None) -> None:
        super().__init__()
        self.how = how
        self.gain = nn.Parameter(torch.randn(6))
        self.stem = nn.Linear(5, 6)
        self.cell = nn.GRUCell(6, 6)
        self.side = nn.Linear(6, 6)
        self.out = nn.Linear(6, CLASSES)

    def _middle(self, x: Tensor) -> Tensor:
        return self.cell(F.linear(x, self.side.weight).tanh() * self.gain)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = (
            self._middle(h)
            if self.how is None
            else checkpoint(self._middle, h, use_reentrant=self.how)
        )
        return self.out(h)


class Norms(nn.Module):
    """Normalisation of every kind, and subclasses of it."""

    def __init__(self) -> None:
        super().__init__()
        import_torchvision()
        from torchvision.models.convnext import LayerNorm2d

        self.stem = nn.Conv2d(3, 4, 3, stride=4)
        self.first = LayerNorm2d(4)
        self.second = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.third = _Named(4)
        self.fourth = nn.GroupNorm(2, 4)
        self.fifth = nn.BatchNorm3d(4)
        self.sixth = nn.InstanceNorm1d(4, affine=True)
        self.seventh = nn.RMSNorm(8)
        self.eighth = _Scaled(8)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fourth(self.third(self.second(self.first(self.stem(x))))).relu()
        x = self.fifth(x[..., None])[..., 0]
        return self.out(self.eighth(self.seventh(self.sixth(x.mean(3)))).mean(1))


class _Named(nn.BatchNorm2d):
    """A batch norm that only has a name of its own."""


class _Scaled(nn.LayerNorm):
    """A layer norm whose forward is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight * 2, self.bias, self.eps)


def images() -> Tensor:
    return torch.randn(IMAGE, dtype=torch.float64)


def words() -> Tensor:
    return torch.randint(1, WORDS, (3, LENGTH))


def rows(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(3, *shape, dtype=torch.float64)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "resnet": (resnet, images),
    "convnext": (convnext, images),
    "vit": (vit, images),
    "swin": (swin, images),
    "norms": (Norms, images),
    "lstm": (Recurrent, words),
    "lstm-projected": (lambda: Recurrent(proj_size=3), words),
    "gru": (lambda: Recurrent(nn.GRU), words),
    "rnn": (lambda: Recurrent(nn.RNN, bias=False), words),
    "cells": (Cells, words),
    "transformer": (Transformer, words),
    "transformer-norm-first": (lambda: Transformer(norm_first=True), words),
    "transformer-tied": (lambda: Transformer(tied=True), words),
    "attention": (Attention, words),
    "signals": (Signals, rows(3, 5)),
    "scaled": (Scaled, rows(5)),
    "repeated": (lambda: Repeated(None), rows(5)),
}
