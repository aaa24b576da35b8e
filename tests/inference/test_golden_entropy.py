"""The choices by entropy that the published code recorded (tests/data/entropy.npz)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hypermask_fast.inference.outputs import Entropy
from hypermask_fast.methods.protocol import Prediction
from tests.support.inference_cases import Recorded

Golden = dict[str, Any]

TOLERANCE = 1e-5
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@pytest.fixture(scope="module")
def golden(data_dir: Path) -> Golden:
    with np.load(data_dir / "entropy.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return {**arrays, "config": json.loads(str(arrays["config"]))}


def tensor(golden: Golden, name: str, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(golden[name]).to(dtype)


def agrees(found: Prediction, golden: Golden, group: str, kinds: list[str] | None = None) -> None:
    """The fair test of the recording: equal where it is clear, else among the lowest."""
    expected, margin = golden[f"{group}/guarded/entropy"], golden[f"{group}/margin"]
    np.testing.assert_allclose(-found.scores.numpy(), expected, atol=TOLERANCE, rtol=0)
    clear = margin > TOLERANCE
    for name, values in (("task", found.tasks), ("class", found.classes)):
        recorded = golden[f"{group}/guarded/{name}"]
        np.testing.assert_array_equal(values.numpy()[clear], recorded[clear], err_msg=name)
        published = golden[f"{group}/{name}"]
        certain = clear & ~np.isnan(golden[f"{group}/entropy"]).any(0)
        np.testing.assert_array_equal(values.numpy()[certain], published[certain], err_msg=name)
    for row in np.flatnonzero(~clear):
        assert expected[found.tasks[row], row] <= expected[:, row].min() + TOLERANCE
        if kinds is not None and kinds[row] == "exact_tie":
            assert int(found.tasks[row]) == golden[f"{group}/guarded/task"][row]


@DTYPES
@pytest.mark.parametrize("group", ["split", "permuted", "cifar"])
def test_hypermask_chooses_as_recorded(golden: Golden, group: str, dtype: torch.dtype) -> None:
    logits = tensor(golden, f"{group}/logits", dtype)
    learner = Recorded(logits, classes=golden[f"{group}/labels"].tolist())
    found = learner.predict(torch.arange(logits.shape[1]))
    kinds = [golden["config"]["kinds"][kind] for kind in golden[f"{group}/kind"]]
    assert found.scores.isfinite().all()
    agrees(found, golden, group, kinds)


def heads(golden: Golden, dtype: torch.dtype) -> Recorded:
    """Each embedding with the outputs of its own head."""
    logits = tensor(golden, "heads/logits", dtype)
    own = torch.stack([logits[j, :, 3 * j : 3 * j + 3] for j in range(4)])
    return Recorded(own, classes=[range(3 * j, 3 * j + 3) for j in range(4)])


@DTYPES
@pytest.mark.parametrize(("group", "temperature"), [("all", 1.0), ("temperature", 2.5)])
def test_hnet_chooses_as_recorded(
    golden: Golden, group: str, temperature: float, dtype: torch.dtype
) -> None:
    found = heads(golden, dtype).predict(torch.arange(32), Entropy(temperature))
    true_task = golden["heads/true_task"]
    named = {**golden, f"heads/{group}/class": golden[f"heads/{group}/class"]}
    agrees(found, named, f"heads/{group}")
    right = (found.tasks.numpy() == true_task).reshape(4, 8)
    if group == "temperature":  # without NaN, so that the published accuracies are those of it
        np.testing.assert_allclose(
            100 * right.mean(1), golden["heads/temperature/task_accuracy"], atol=1e-4
        )


@DTYPES
def test_hnet_chooses_among_the_tasks_so_far_as_recorded(
    golden: Golden, dtype: torch.dtype
) -> None:
    learner = heads(golden, dtype)
    for task in range(4):
        rows = np.flatnonzero(golden["heads/true_task"] == task)
        found = learner.predict(torch.from_numpy(rows), tasks=range(task + 1))
        part = {
            name: array[..., rows]
            for name, array in golden.items()
            if name.startswith("heads/during") and "accuracy" not in name
        }
        part["heads/during/guarded/entropy"] = part["heads/during/guarded/entropy"][: task + 1]
        agrees(found, part, "heads/during")


@DTYPES
def test_one_head_for_all_tasks_chooses_as_recorded(golden: Golden, dtype: torch.dtype) -> None:
    learner = Recorded(tensor(golden, "single/logits", dtype))
    agrees(learner.predict(torch.arange(32)), golden, "single")
