"""A module of one's own: a network, and tasks of Datasets that are read lazily."""

from __future__ import annotations

from pathlib import Path

SOURCE = """
import math
import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset


class Branches(nn.Module):
    def __init__(self, features, outputs, width):
        super().__init__()
        self.left, self.right = nn.Linear(features, width), nn.Linear(features, width)
        self.gain = nn.Parameter(torch.tensor(random.random() + np.random.rand()))
        self.norm = nn.BatchNorm1d(width)
        self.out = nn.Linear(width, outputs)

    def forward(self, x):
        x = x.flatten(1)
        return self.out(self.norm(self.left(x).relu() + self.gain * self.right(x).tanh()))


def make_net(input_shape, num_outputs, width=5):
    return Branches(math.prod(input_shape), num_outputs, width)


class Points(Dataset):
    def __init__(self, count, place):
        generator = torch.Generator().manual_seed(place)
        self.targets = [i % 2 for i in range(count)]
        self.points = torch.randn(count, 4, generator=generator)
        self.points[:, place] += 4 * torch.tensor(self.targets)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):  # with a random transform
        return self.points[i] + 0.1 * torch.randn(4), self.targets[i]


def make_tasks(count=2):
    tasks = []
    for i in range(count):
        tasks.append({"name": f"points {i}", "train": Points(24, i), "test": Points(16, i)})
    return tasks


def tokens(seed):
    x = torch.randint(9, (20, 6))
    y = (x.sum(1) > 24).long()
    return {"first": ((x, y), (x, y)), "last": ((x, 1 - y), (x, 1 - y))}


class Words(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.out = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.out(self.words(x).mean(1))


def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))


def no_module():
    return [1]


def raises(num_outputs):
    raise KeyError("weights")


def wants_more(depth):
    return nn.Identity()


def any_keyword(**options):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, options["num_classes"]))


class Valued(nn.Module):
    def __init__(self, outputs, in_forward):
        super().__init__()
        self.scale = torch.linspace(1, 2, 3)[1].item()
        self.in_forward = in_forward
        self.out = nn.Linear(64, outputs)

    def forward(self, x):
        x = x.flatten(1)
        scale = 1 + float(x.sum() > 1e9) if self.in_forward else self.scale
        return self.out(x * scale)


def valued(num_outputs, in_forward=False):
    return Valued(num_outputs, in_forward)


def no_tasks():
    return []


def twice():
    return [*make_tasks(1), *make_tasks(1)]
"""


def write_module(folder: Path, name: str, source: str = SOURCE) -> None:
    """Write the module into a folder."""
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
