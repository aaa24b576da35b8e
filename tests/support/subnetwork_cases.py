"""The recorded runs of SupSup and ExSSNeT, and learners that begin as they do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.methods.exssnet.learner import ExSSNeT
from hypermask_fast.methods.subnetwork import SubnetworkLearner
from hypermask_fast.methods.supsup.learner import SupSup
from hypermask_fast.native import library
from hypermask_fast.networks import MLP

Golden = Mapping[str, Any]

KINDS: dict[str, Any] = {"supsup": SupSup, "exssnet": ExSSNeT}
PASSES = ("native", "pytorch", "reference")


def choose_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what follows run on the native passes, on PyTorch's selection, or on the reference."""
    if name == "pytorch":
        monkeypatch.setattr(library, "load", lambda: None)
    elif name == "reference":
        monkeypatch.setenv("HYPERMASK_FAST_BACKEND", "reference")
    elif library.load() is None:
        pytest.skip(f"the native passes are not available: {library.status()}")


class SmallConvNet(nn.Module):
    """Convolutions with batch norm and ReLU, an average pool and a classifier, without biases."""

    def __init__(
        self, maps: Sequence[int], strides: Sequence[int], pool: int, outputs: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out, stride in zip((3, *maps), maps, strides, strict=False):
            layers += [
                nn.Conv2d(into, out, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(out, affine=False),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers, nn.AvgPool2d(pool), nn.Flatten())
        self.classifier = nn.Linear(maps[-1], outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x))


class Run:
    """One recorded run: its settings, and its arrays by the names of the page."""

    def __init__(self, path: Path, prefix: str = "", start: str = "") -> None:
        with np.load(path) as file:
            self._arrays = {name: file[name] for name in file.files}
        config = json.loads(str(self._arrays["config"]))
        self.config: dict[str, Any] = config.get(prefix, config)
        self._prefixes = [f"{p}/" if p else "" for p in (prefix, start or prefix)]

    def __contains__(self, name: str) -> bool:
        return f"{self._prefixes[0]}{name}" in self._arrays

    def __getitem__(self, name: str) -> np.ndarray:
        for prefix in self._prefixes:
            if f"{prefix}{name}" in self._arrays:
                return self._arrays[f"{prefix}{name}"]
        raise KeyError(name)

    def tensor(self, name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        value = torch.from_numpy(self[name])
        return value.to(dtype) if value.is_floating_point() else value

    def layers(self, name: str) -> list[Tensor]:
        return [self.tensor(f"{name}/{i}") for i in range(len(self.config["shapes"]))]

    def flat(self, name: str) -> Tensor:
        return torch.cat([layer.flatten() for layer in self.layers(name)])

    def network(self) -> nn.Module:
        config = self.config
        outputs = config.get("outputs", config["classes"])
        if config["conv"]:
            net: nn.Module = SmallConvNet(
                config["hidden"], config["strides"], config["pool"], outputs
            )
        else:
            net = MLP(config["inputs"], config["hidden"], outputs, bias=False)
        return net.double()

    def begin(self, learner: SubnetworkLearner) -> None:
        """Give a learner the recorded weights and tasks."""
        with torch.no_grad():
            for weight, value in zip(
                learner.net.parameters(), self.layers("init/weight"), strict=True
            ):
                weight.copy_(value)
        for _ in range(self.config["tasks"]):
            learner.add_task()

    def batch(self, task: int, step: int) -> tuple[Tensor, Tensor]:
        return self.tensor(f"batch/{task}/{step}/x"), self.tensor(f"batch/{task}/{step}/y")

    def losses(self) -> dict[tuple[int, int], tuple[float, float]]:
        return {(int(t), int(s)): (loss, lr) for t, s, loss, lr in self["losses"]}


def check_probes(
    learner: SubnetworkLearner, run: Run, task: int, first: dict[int, Tensor] | None
) -> None:
    """Fail where statistics or probes after a task are not the recorded ones.

    Args:
        learner: In evaluation, the task learned.
        run: The recorded run.
        task: The task.
        first: The logits of each task's probe after it, which must keep their bits; None: not so.
    """
    for layer, table in enumerate(learner.norms.tables):
        for key in ("mean", "var"):
            expected = run[f"after/{task}/bn/{layer}/{key}"]
            close(table.get_buffer(f"running_{key}")[task], expected, 1e-5, f"{task} {key}")
    for other in range(task + 1):
        logits = learner(run.tensor(f"probe/{other}/x"), other)
        close(logits, run[f"probe_logits/{task + 1}/{other}"], 1e-5, f"{task} {other}")
        assert first is None or torch.equal(logits, first.setdefault(other, logits))


def close(actual: Tensor, expected: np.ndarray | Tensor, tolerance: float, what: str) -> None:
    """Fail where entries differ by more than a share of the largest."""
    value = np.asarray(expected)
    atol = tolerance * max(float(np.abs(value).max(initial=0)), 1e-30)
    np.testing.assert_allclose(actual.detach().numpy(), value, rtol=0, atol=atol, err_msg=what)


def check_masks(learner: SubnetworkLearner, task: int, run: Run, name: str) -> None:
    """Fail where a bit of a task's mask is not the recorded one."""
    for i, mask in enumerate(learner.masks(task).values()):
        assert torch.equal(mask, run.tensor(f"{name}/{i}").bool()), f"{name}/{i}"
