"""What the published FeCAM code in HyperMask computed (tests/data/fecam.npz)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hypermask_fast.inference.fecam import FeCAM
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from tests.support.inference_cases import Recorded

Golden = dict[str, Any]

TASKS, CLASSES = 3, ((0, 1), (2, 3), (4, 5))


@pytest.fixture(scope="module")
def golden(data_dir: Path) -> Golden:
    with np.load(data_dir / "fecam.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return {**arrays, "config": json.loads(str(arrays["config"]))}


def score_of(golden: Golden, name: str, **options: Any) -> FeCAM:
    settings = dict(golden["config"]["settings"][name])
    settings["tukey"] = "published" if settings["tukey"] else "none"
    return FeCAM(**settings, **options)


def of_task(golden: Golden, prefix: str, task: int) -> tuple[Tensor, Tensor]:
    """Numbers of a task's training rows, and its local labels."""
    classes = torch.from_numpy(golden[f"{prefix}class"])
    rows = (classes // 2 == task).nonzero().flatten()
    return rows, classes[rows] % 2


def test_each_stage_of_a_covariance_is_as_recorded(golden: Golden) -> None:
    features = torch.from_numpy(golden["train/features"]).double()
    classes = torch.from_numpy(golden["train/class"])
    for number in range(6):
        raw = features[classes == number].T.cov()
        stages = {"0": raw, **{str(k): FeCAM(shrinkage=k).shrunk(raw) for k in (1, 2)}}
        stages["normalized"] = FeCAM().normalized(stages["2"])
        for name, value in stages.items():
            expected = golden[f"chain/{number}/{name}"]
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    "name", ["published", "once", "raw_features", "raw_covariance", "no_shrinkage", "tukey"]
)
def test_distances_and_choices_are_as_recorded(golden: Golden, name: str) -> None:
    train = torch.from_numpy(golden["train/features"]).double()
    test = torch.from_numpy(golden["test/features"]).double()
    logits = torch.zeros(TASKS, 240, 2)
    fitting = Recorded(logits, train.expand(TASKS, -1, -1), CLASSES)
    data = {task: [of_task(golden, "train/", task)] for task in range(TASKS)}
    score = score_of(golden, name).fitted(fitting, data)
    rtol = 1e-4 if name == "no_shrinkage" else 1e-5
    for number in range(6):
        model = score.models[number // 2]
        place = number % 2
        covariance = golden[f"{name}/covariance"][number]
        # Small entries are differences of the float32 products that were recorded.
        np.testing.assert_allclose(
            model.covariances[place], covariance, rtol=1e-5, atol=1e-7 * covariance.max()
        )
        np.testing.assert_allclose(
            model.prototypes[place].numpy(), golden[f"{name}/prototype"][number], rtol=1e-5
        )
        distances = score.distances(test[number // 2], number // 2)[place]
        np.testing.assert_allclose(distances.numpy(), golden[f"{name}/distance"][number], rtol=rtol)
    found = Recorded(logits, test, CLASSES).predict(torch.arange(54), score)
    np.testing.assert_allclose(-found.scores, golden[f"{name}/task_distance"], rtol=rtol)
    np.testing.assert_array_equal(found.tasks, golden[f"{name}/task"])
    np.testing.assert_array_equal(found.classes, golden[f"{name}/class"])


def learner_of(golden: Golden, dtype: torch.dtype) -> HyperMask:
    config = golden["config"]
    learner = HyperMask(
        MLP(config["n_in"], config["hidden"], config["classes"]),
        embedding_dim=config["emb"],
        hidden=config["hnet"],
        sparsity=config["p"],
        capacity=TASKS,
    ).to(dtype)
    hypernetwork = learner.hypernetwork
    named: dict[str, Tensor] = {f"embedding/{j}": hypernetwork.embeddings[j] for j in range(TASKS)}
    first = hypernetwork.trunk[0]
    named |= {"trunk/0/weight": first.weight, "trunk/0/bias": first.bias}
    named |= {"head/weight": hypernetwork.head.weight, "head/bias": hypernetwork.head.bias}
    named |= {f"target/{i}": p for i, p in enumerate(learner.net.parameters())}
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(torch.from_numpy(golden[f"net/{name}"]))
    learner.eval()
    for task in range(TASKS):
        learner.add_task(classes=CLASSES[task])
    learner(torch.zeros(1, config["n_in"], dtype=dtype), 0)
    for task in range(TASKS):
        learner.begin_task(task)
        learner.end_task()
    return learner.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_whole_path_is_as_recorded(golden: Golden, dtype: torch.dtype) -> None:
    learner = learner_of(golden, dtype)
    train, test = (
        torch.from_numpy(golden[f"net/{part}/x"]).to(dtype) for part in ("train", "test")
    )
    data = {}
    for task in range(TASKS):
        rows, labels = of_task(golden, "net/train/", task)
        data[task] = [(train[rows[:30]], labels[:30]), (train[rows[30:]], labels[30:])]
    with torch.no_grad():
        np.testing.assert_allclose(
            learner.all_outputs(test), golden["net/test/logits"], rtol=1e-5, atol=1e-5
        )
        score = FeCAM().fitted(learner, data)
    found = learner.predict(test, score, batch_size=20)
    np.testing.assert_allclose(-found.scores, golden["net/published/task_distance"], rtol=1e-5)
    np.testing.assert_array_equal(found.tasks, golden["net/published/task"])
    np.testing.assert_array_equal(found.classes, golden["net/published/class"])
    with torch.no_grad():
        by_output = FeCAM(classes="output").fitted(learner, data)
    found = learner.predict(test, by_output)
    np.testing.assert_array_equal(found.tasks, golden["net/published/task"])
    np.testing.assert_array_equal(found.classes, golden["net/published/class_task_mode"])
    found = learner.predict(test)
    np.testing.assert_allclose(-found.scores, golden["net/entropy/entropy"], atol=1e-5)
    clear = golden["net/entropy/margin"] > 1e-5
    np.testing.assert_array_equal(found.tasks[clear], golden["net/entropy/task"][clear])
    np.testing.assert_array_equal(found.classes[clear], golden["net/entropy/class"][clear])
