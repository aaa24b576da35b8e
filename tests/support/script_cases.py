"""A script with a run of its own, to be killed and started again: ``python FILE FOLDER [STEP]``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

import hypermask_fast as hmf

STEPS = 7


class Points(Dataset[Any]):
    """Points of two classes, moved at random whenever they are read."""

    def __init__(self, count: int, place: int) -> None:
        generator = torch.Generator().manual_seed(place)
        self.targets = [i % 2 for i in range(count)]
        self.points = torch.randn(count, 4, generator=generator)
        self.points[:, place] += 4 * torch.tensor(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.points[i] + 0.1 * torch.randn(4), self.targets[i]


def trainer(**options: Any) -> hmf.Trainer:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 2)
    )
    learner = hmf.HyperMask(net, embedding_dim=3, hidden=(4,), capacity=2, sparsity=20.0)
    options = {"steps": STEPS, "batch_size": 8, "lr": 0.01, **options}
    return hmf.Trainer(learner, progress=False, **options)


def tasks(count: int = 3) -> Iterator[hmf.scenarios.Task]:
    for place in range(count):
        torch.rand(1)  # what a script draws between two tasks
        yield hmf.scenarios.make_task(f"points {place}", Points(24, place), Points(16, place))


def main(
    folder: str | Path, hook: Callable[[hmf.Trainer], None] | None = None, **options: Any
) -> hmf.Run:
    made = trainer(**options)
    if hook is not None:
        made.hooks.append(hook)
    with hmf.Run(folder, made, log_every=2, checkpoint_every=0.0) as run:
        for task in tasks():
            run.fit(task)
    return run


def at(step: int, act: Callable[[], None]) -> Callable[[hmf.Trainer], None]:
    """A hook that acts after a step of the run, before its checkpoint."""

    def hook(made: hmf.Trainer) -> None:
        if made.tasks_done * STEPS + made.step == step:
            act()

    return hook


if __name__ == "__main__":
    kill = at(int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL))
    main(sys.argv[1], kill)
