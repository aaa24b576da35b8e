"""The recorded run of the published HyperMask code (tests/data/hypermask_mlp.npz), step by step."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.native import library
from hypermask_fast.networks import MLP
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.training.step import TrainingStep

OnePass = partial(FactoredAdam, step_in_backward=True)

Golden = dict[str, Any]
Step = Callable[[Tensor, Tensor, int, Callable[[], None]], Losses]


@pytest.fixture(scope="module")
def golden(data_dir: Path) -> Golden:
    with np.load(data_dir / "hypermask_mlp.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return {**arrays, "config": json.loads(str(arrays["config"]))}


def parameters_of(learner: HyperMask) -> dict[str, Tensor]:
    """Name the learner's parameters as the recording does."""
    hypernetwork = learner.hypernetwork
    named = {f"embedding/{j}": hypernetwork.embeddings[j] for j in range(3)}
    linear = [layer for layer in hypernetwork.trunk if isinstance(layer, torch.nn.Linear)]
    for i, layer in enumerate(linear):
        named |= {f"trunk/{i}/weight": layer.weight, f"trunk/{i}/bias": layer.bias}
    named |= {"head/weight": hypernetwork.head.weight, "head/bias": hypernetwork.head.bias}
    return named | {f"target/{i}": p for i, p in enumerate(learner.net.parameters())}


def make_learner(golden: Golden, prefix: str, dtype: torch.dtype) -> HyperMask:
    config = golden["config"]
    learner = HyperMask(
        MLP(20, (24, 16), 4).to(dtype),
        embedding_dim=config["emb"],
        hidden=config["hidden"],
        sparsity=config["p"],
        beta=config["beta"],
        lam=config["lam"],
        masked_l1=config["masked_l1"],
        capacity=3,
    )
    with torch.no_grad():
        for name, parameter in parameters_of(learner).items():
            parameter.copy_(torch.from_numpy(golden[f"{prefix}/{name}"]))
    for _ in range(config["tasks"]):
        learner.add_task()
    return learner


def batch(golden: Golden, task: int, step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, y = golden[f"batch/{task}/{step}/x"], golden[f"batch/{task}/{step}/y"]
    return torch.from_numpy(x).to(dtype), torch.from_numpy(y)


def close(actual: Tensor, expected: np.ndarray, *, rtol: float, atol: float, what: str) -> None:
    np.testing.assert_allclose(
        actual.detach().numpy(), expected, rtol=rtol, atol=atol, err_msg=what
    )


def ordinary(learner: HyperMask, optimizer: torch.optim.Optimizer) -> Step:
    """Forward, backward and update as in a loop of one's own."""

    def step(x: Tensor, y: Tensor, task: int, before_update: Callable[[], None]) -> Losses:
        losses = learner.losses(x, y, task, optimizer=optimizer)
        optimizer.zero_grad()
        before_update()
        losses.total.backward()
        optimizer.step()
        return losses

    return step


@pytest.mark.parametrize(
    ("make_step", "make_optimizer"),
    [
        pytest.param(ordinary, torch.optim.Adam, id="torch-adam"),
        pytest.param(ordinary, FactoredAdam, id="factored-adam"),
        pytest.param(TrainingStep, OnePass, id="one-pass"),
        pytest.param(ordinary, OnePass, id="one-pass-in-a-loop-of-ones-own"),
    ],
)
@pytest.mark.parametrize("passes", ["native", "pytorch"])
def test_the_whole_run_in_float64(
    golden: Golden,
    make_step: Callable[..., Step],
    make_optimizer: Callable[..., torch.optim.Optimizer],
    passes: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if passes == "pytorch":
        monkeypatch.setattr(library, "load", lambda: None)
    elif library.load() is None:
        pytest.skip(f"the native passes are not available: {library.status()}")
    config = golden["config"]
    rows = {(int(row[0]), int(row[1])): row for row in golden["losses"]}
    learner = make_learner(golden, "init", torch.float64)
    for task in range(config["tasks"]):
        learner.begin_task(task, steps=config["steps"])
        take_step = make_step(learner, make_optimizer(learner.parameters(), lr=config["lr"]))
        if task:
            targets = learner.task_state()[0]["targets"]
            close(targets, golden[f"targets/{task}"], rtol=1e-7, atol=1e-8, what=f"targets {task}")
        for step in range(config["steps"]):
            x, y = batch(golden, task, step, torch.float64)
            what = f"task {task} step {step}"
            *losses, percentile = rows[task, step][2:]
            masks: dict[str, Tensor] = {}

            def keep_masks(task: int = task, masks: dict[str, Tensor] = masks) -> None:
                masks.update(learner.masks(task, sparsity=learner.step_sparsity))

            out = take_step(x, y, task, keep_masks)
            assert learner.step_sparsity == pytest.approx(percentile, rel=1e-12)
            actual = (out.total, out.task, out.output_reg, out.weight_reg)
            for value, expected in zip(actual, losses, strict=True):
                close(value, expected, rtol=1e-7, atol=1e-12, what=what)
            if step == 0:
                assert out.output_reg.item() == 0.0
            if f"logits/{task}/{step}" in golden:
                close(out.logits, golden[f"logits/{task}/{step}"], rtol=1e-7, atol=1e-8, what=what)
                for i, name in enumerate(name for name, _ in learner.net.named_parameters()):
                    if name in masks:
                        expected = golden[f"mask/{task}/{step}/{i}"]
                        close(masks[name], expected, rtol=1e-7, atol=1e-12, what=f"{what} {name}")
                        assert ((masks[name] == 0).numpy() == (expected == 0)).all()
        learner.end_task()
        for name, parameter in parameters_of(learner).items():
            expected = golden[f"after/{task}/{name}"]
            close(parameter, expected, rtol=0, atol=1e-6, what=f"after task {task}: {name}")


def test_one_step_in_float32_is_as_exact_as_torch(golden: Golden) -> None:
    """Open loop from the recorded state: losses to float32 rounding of the float64 ones."""
    for task in range(1, golden["config"]["tasks"]):
        outs = []
        for dtype in (torch.float32, torch.float64):
            learner = make_learner(golden, f"after/{task - 1}", dtype)
            for earlier in range(task):
                learner.begin_task(earlier)
                learner.end_task()
            learner.begin_task(task)
            out = learner.losses(*batch(golden, task, 0, dtype), task)
            assert out.output_reg.item() == 0.0
            out.total.backward()
            grads = [p.grad for p in learner.parameters() if p.grad is not None]
            outs.append((out, grads))
        (single, single_grads), (double, double_grads) = outs
        # A sum of n rounded terms errs by less than n eps of its largest partial sum.
        eps = torch.finfo(torch.float32).eps
        assert single.task.item() == pytest.approx(double.task.item(), rel=24 * eps)
        for a, b in zip(single_grads, double_grads, strict=True):
            error = (a.double() - b).norm() / b.norm().clamp_min(1e-30)
            assert error < 64 * eps
