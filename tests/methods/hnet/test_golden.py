"""The recorded run of the published HNET loop (tests/data/hnet.npz), step by step."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hypermask_fast.backends.choice import backend
from hypermask_fast.methods.hnet.learner import HNET
from hypermask_fast.native import library
from hypermask_fast.networks import MLP
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.optim.lookahead import lookahead
from hypermask_fast.training.step import TrainingStep

Golden = dict[str, Any]

# The file holds float32 numbers: half a unit in the last place, 6e-8, of the largest entry.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def golden(data_dir: Path) -> Golden:
    with np.load(data_dir / "hnet.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return {**arrays, "config": json.loads(str(arrays["config"]))}


def shared_of(learner: HNET) -> dict[str, Tensor]:
    """What the first optimizer trains, by the recording's names."""
    hypernetwork: Any = learner.hypernetwork
    linear = [layer for layer in hypernetwork.trunk if isinstance(layer, torch.nn.Linear)]
    named = {"chunk_embedding": hypernetwork.chunk_embeddings}
    for i, layer in enumerate(linear):
        named |= {f"trunk/{i}/weight": layer.weight, f"trunk/{i}/bias": layer.bias}
    return named | {
        "head/weight": hypernetwork.head.weight,
        "head/bias": hypernetwork.head.bias,
    }


def parameters_of(learner: HNET) -> dict[str, Tensor]:
    embeddings = {f"embedding/{j}": learner.hypernetwork.embeddings[j] for j in range(3)}
    return shared_of(learner) | embeddings


def make_learner(golden: Golden, **options: Any) -> HNET:
    config = golden["config"]
    learner = HNET(
        MLP(config["inputs"], config["hidden"], config["outputs"]).double(),
        embedding_dim=config["emb"],
        chunk_embedding_dim=config["chunk_emb"],
        hidden=config["hnet"],
        activation=config["act"],
        chunk_size=config["chunk"],
        beta=config["beta"],
        task_heads="multi",
        capacity=3,
        **options,
    )
    with torch.no_grad():
        for name, parameter in parameters_of(learner).items():
            parameter.copy_(torch.from_numpy(golden[f"init/{name}"]))
    for task in range(config["tasks"]):
        learner.add_task(classes=[2 * task, 2 * task + 1])
    return learner


def close(actual: Tensor, expected: np.ndarray, what: str, tolerance: float = TOLERANCE) -> None:
    scale = max(float(np.abs(expected).max()), 1e-12)
    np.testing.assert_allclose(
        actual.detach().numpy(), expected, rtol=0, atol=tolerance * scale, err_msg=what
    )


def check_during(golden: Golden, learner: HNET, task: int) -> None:
    """The networks of the tasks so far, and what their entropies say of a batch of the last."""
    probes = torch.from_numpy(
        np.concatenate([golden[f"probe/{t}/x"] for t in range(golden["config"]["tasks"])])
    ).double()
    for j in range(task + 1):
        ids = torch.tensor([j])
        theta = learner.hypernetwork.logits(ids)[0]
        close(theta, golden[f"after/{task}/theta/{j}"], f"weights {j} after task {task}")
        own = golden[f"after/{task}/probe_logits/{j}"][:, 2 * j : 2 * j + 2]
        close(learner(probes, j), own, f"logits of {j} after task {task}")
    x = torch.from_numpy(golden[f"probe/{task}/x"]).double()
    p = learner.all_outputs(x)[: task + 1].softmax(-1)
    entropy = -(p * p.log()).sum(-1).T
    close(entropy, golden[f"during/{task}/entropy"], f"entropies after task {task}")
    assert (entropy.argmin(1).numpy() == golden[f"during/{task}/task"]).all()


@pytest.mark.parametrize("targets", ["full", "recomputed"])
@pytest.mark.parametrize("adam", [FactoredAdam, torch.optim.Adam])
@pytest.mark.parametrize("passes", ["fast", "plain", "reference"])
def test_the_whole_run_in_float64(
    golden: Golden,
    targets: str,
    adam: type[torch.optim.Optimizer],
    passes: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if passes == "plain":
        monkeypatch.setattr(library, "load", lambda: None)
    elif passes == "fast" and library.load() is None:
        pytest.skip(f"the native passes are not available: {library.status()}")
    config = golden["config"]
    learner = make_learner(golden, targets=targets)
    # The first optimizer's rate is the recording's; the embedding's is another.
    for task in range(config["tasks"]):
        learner.begin_task(task)
        make: Any = partial(adam)
        main, embedding = learner.parameter_groups()
        optimizers = {
            "main": make(main.params, lr=config["lr"]),
            "embedding": make(embedding.params, lr=config["lr_emb"]),
        }
        step = TrainingStep(learner, optimizers)
        for number in range(config["steps"]):
            what = f"task {task} step {number}"
            for name, value in parameters_of(learner).items():
                close(value, golden[f"trace/param/{name}"][task, number], f"{what}: {name}")
            x = torch.from_numpy(golden[f"batch/{task}/{number}/x"]).double()
            y = torch.from_numpy(golden[f"batch/{task}/{number}/y"])
            with backend("reference" if passes == "reference" else "auto"):
                out = step(x, y, task)
            found = torch.stack((out.task, out.output_reg, out.total))
            np.testing.assert_allclose(
                found.numpy(), golden["losses"][task, number], rtol=0, atol=TOLERANCE, err_msg=what
            )
            close(out.logits, golden["trace/logits"][task, number], f"{what}: logits")
        learner.end_task()
        for name, parameter in parameters_of(learner).items():
            close(parameter, golden[f"after/{task}/{name}"], f"after task {task}: {name}")
        with torch.no_grad():
            check_during(golden, learner.eval(), task)


def test_the_look_ahead_of_recorded_gradients(golden: Golden) -> None:
    """Adam's moments follow from the recorded gradients; PyTorch's own step is 7e-2 away."""
    config = golden["config"]
    for name in (n.removeprefix("trace/lookahead/") for n in golden if "trace/lookahead/" in n):
        for task in range(1, config["tasks"]):
            p = torch.nn.Parameter(torch.from_numpy(golden[f"init/{name}"]).double())
            optimizer = torch.optim.Adam([p], lr=config["lr"])
            for number in range(config["steps"]):
                grads = [
                    golden[f"trace/{kind}/{name}"][task, number] for kind in ("grad_task", "grad")
                ]
                first, summed = (torch.from_numpy(grad).double() for grad in grads)
                p.grad = first
                expected = golden[f"trace/lookahead/{name}"][task, number]
                # Gradients are rounded to float32, and small ones are divided by their own size.
                change = lookahead(optimizer, p) - p.detach()
                close(change, expected, f"{name} {task} {number}", 5e-4)
                p.grad = summed
                optimizer.step()


def test_without_the_look_ahead_the_run_is_another(golden: Golden) -> None:
    config = golden["config"]
    learner = make_learner(golden, lookahead=False)
    for task in range(2):
        learner.begin_task(task)
        main, embedding = learner.parameter_groups()
        optimizers = {
            "main": FactoredAdam(main.params, lr=config["lr"]),
            "embedding": FactoredAdam(embedding.params, lr=config["lr_emb"]),
        }
        step = TrainingStep(learner, optimizers)
        worst = 0.0
        for number in range(config["steps"]):
            x = torch.from_numpy(golden[f"batch/{task}/{number}/x"]).double()
            y = torch.from_numpy(golden[f"batch/{task}/{number}/y"])
            out = step(x, y, task)
            recorded = golden["losses"][task, number]
            worst = max(worst, abs(float(out.total) - recorded[2]))
            if number == 0:
                # Nothing moved since what is kept was made, and nothing looks ahead.
                assert out.output_reg == 0
        assert worst < TOLERANCE if task == 0 else worst > 0.05
        learner.end_task()
