"""Small HyperInterval learners, and the recordings' names of what they have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hypermask_fast.methods.hyperinterval.learner import HyperInterval
from hypermask_fast.networks import MLP

Golden = dict[str, Any]


def recording(data_dir: Path, name: str) -> Golden:
    with np.load(data_dir / f"hyperinterval_{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return {**arrays, "config": json.loads(str(arrays["config"]))}


def make(net: nn.Module | None = None, tasks: int = 3, **options: Any) -> HyperInterval:
    defaults: dict[str, Any] = {"embedding_dim": 3, "hidden": (6, 5), "capacity": 5}
    learner = HyperInterval(MLP(5, (4,), 3) if net is None else net, **{**defaults, **options})
    for _ in range(tasks):
        learner.add_task()
    return learner


def parameters_of(learner: HyperInterval, tasks: int = 3) -> dict[str, Tensor]:
    """Name the learner's parameters as the recordings do."""
    hypernetwork = learner.hypernetwork
    named: dict[str, Tensor] = {}
    for j in range(tasks):
        named[f"embedding/{j}"] = hypernetwork.embeddings[j]
        if hypernetwork.radii is not None:
            named[f"radius/{j}"] = hypernetwork.radii[j]
    linear = [layer for layer in hypernetwork.trunk if isinstance(layer, nn.Linear)]
    for i, layer in enumerate(linear):
        named |= {f"trunk/{i}/weight": layer.weight, f"trunk/{i}/bias": layer.bias}
    return named | {
        "head/weight": hypernetwork.head.weight,
        "head/bias": hypernetwork.head.bias,
    }


def grads_of(learner: HyperInterval, tasks: int = 3) -> dict[str, Tensor]:
    """Gradients by the recordings' names, zeros where there is none."""
    hypernetwork = learner.hypernetwork
    tables = {"embedding": hypernetwork.embeddings, "radius": hypernetwork.radii}
    found: dict[str, Tensor] = {}
    for name, parameter in parameters_of(learner, tasks).items():
        kind, _, row = name.partition("/")
        table = tables.get(kind)
        if table is None:
            grad = parameter.grad
            found[name] = torch.zeros_like(parameter) if grad is None else grad
        else:
            found[name] = (torch.zeros_like(table) if table.grad is None else table.grad)[int(row)]
    return found


def load(learner: HyperInterval, golden: Golden, prefix: str) -> None:
    with torch.no_grad():
        for name, parameter in parameters_of(learner).items():
            if f"{prefix}/{name}" in golden:
                parameter.copy_(torch.from_numpy(golden[f"{prefix}/{name}"]))


def golden_learner(golden: Golden, prefix: str = "init", **options: Any) -> HyperInterval:
    config = golden["config"]
    learner = HyperInterval(
        MLP(config["n_in"], config["hidden"], config["n_out"]).double(),
        embedding_dim=config["emb"],
        hidden=config["hnet"],
        capacity=3,
        **{"division": "twice", **options},
    )
    load(learner, golden, prefix)
    for _ in range(3):
        learner.add_task()
    return learner


def close(actual: Tensor, expected: Any, tolerance: float, what: str) -> None:
    """Compare up to a share of the largest entry."""
    expected = np.asarray(expected)
    scale = max(float(np.abs(expected).max()), 1e-12)
    np.testing.assert_allclose(
        actual.detach().numpy(), expected, rtol=0, atol=tolerance * scale, err_msg=what
    )
