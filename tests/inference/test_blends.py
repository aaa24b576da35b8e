"""Scores by the gradient of a blend: those of one_shot and binary, for batches and images alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hypermask_fast import HNET, SupSup
from hypermask_fast.errors import ConfigError, InferenceError
from hypermask_fast.inference.blends import Binary, OneShot
from hypermask_fast.inference.one_shot import binary, one_shot
from hypermask_fast.methods.base import Learner
from hypermask_fast.networks import MLP
from tests.support.inference_cases import learned
from tests.support.subnetwork_cases import SmallConvNet


def subnetworks(tasks: int = 6, superfluous: int = 0) -> SupSup:
    torch.manual_seed(0)
    net = MLP(12, (32,), 4 + superfluous, bias=False).double()
    learner = SupSup(net, rule="threshold", superfluous=superfluous)
    for task in range(tasks):
        learner.add_task(classes=range(4))
        learner.begin_task(task)
        learner.end_task()
    return learner.eval()


def convolutions() -> SupSup:
    """With batch norm, whose statistics are blended too."""
    torch.manual_seed(0)
    learner = SupSup(SmallConvNet((6, 8), (1, 2), 4, 4).double(), density=0.4)
    for task in range(3):
        learner.add_task()
        learner.begin_task(task)
        learner.losses(torch.randn(5, 3, 8, 8).double() + task, torch.arange(5) % 4, task)
        learner.end_task()
    return learner.eval()


def generated() -> HNET:
    torch.manual_seed(0)
    learner = HNET(MLP(12, (8,), 3), embedding_dim=4, hidden=(5,)).double()
    for task in range(3):
        learner.add_task()
        learner.begin_task(task)
        learner.end_task()
    return learner.eval()


@pytest.mark.parametrize("options", [{}, {"rows": 1}, {"objective": "g", "outputs": 3}])
def test_a_batch_has_the_task_that_one_shot_and_binary_find(options: dict[str, object]) -> None:
    learner, x = subnetworks(), 3 * torch.randn(23, 12).double()
    plain = {("classes" if k == "outputs" else k): v for k, v in options.items()}
    found = learner.predict(x, "one_shot", batch_size=10, **options)
    halved = learner.predict(x, "binary", batch_size=10, **options)
    seen = set()
    for rows, tasks, of_halves, scores in zip(
        x.split(10),
        found.tasks.split(10),
        halved.tasks.split(10),
        found.scores.split(10, 1),
        strict=True,
    ):
        expected = one_shot(learner, rows, **plain)
        assert tasks.tolist() == [expected.task] * len(rows)
        torch.testing.assert_close(scores, -expected.grad[0][:, None].expand(-1, len(rows)))
        assert of_halves.tolist() == [binary(learner, rows, **plain).task] * len(rows)
        seen.add(expected.task)
        for row, task in zip(rows, tasks.tolist(), strict=True):
            assert learner(row[None], task).argmax() in range(4)
    assert len(seen) > 1


def test_binary_scores_are_the_passes_that_a_task_is_left_in() -> None:
    learner, x = subnetworks(), 3 * torch.randn(9, 12).double()
    found = binary(learner, x)
    scores = learner.predict(x, "binary").scores[:, 0]
    for task in range(6):
        passes = int((found.alpha[:, task] != 0).sum())
        assert int(scores[task]) == (passes if task == found.task else passes - 1)


CASES: list[tuple[Callable[[], Learner], tuple[int, ...], dict[str, object]]] = [
    (subnetworks, (12,), {}),
    (lambda: subnetworks(3, superfluous=5), (12,), {"objective": "g"}),
    (convolutions, (3, 8, 8), {}),
    (learned, (5,), {}),
    (generated, (12,), {}),
]


@pytest.mark.parametrize(("make", "shape", "options"), CASES)
def test_single_images_are_as_batches_of_one(
    make: Callable[[], Learner], shape: tuple[int, ...], options: dict[str, object]
) -> None:
    learner, x = make(), 2 * torch.randn(7, *shape).double()
    alone = learner.predict(x, "one_shot", batch_size=1, **options)
    together = learner.predict(x, "one_shot", per_image=True, batch_size=5, **options)
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-9, atol=1e-13)
    assert torch.equal(together.tasks, alone.tasks)
    assert float(alone.scores.std(1).max()) > 0


def test_an_empty_batch_has_an_empty_prediction() -> None:
    learner = subnetworks(2)
    for name in ("one_shot", "binary"):
        assert learner.predict(torch.zeros(0, 12).double(), name).scores.shape == (2, 0)


def test_tasks_that_binary_cannot_tell_apart_stay_together() -> None:
    learner, x = subnetworks(2), torch.randn(4, 12).double()
    learner.bits[1] = learner.bits[0]
    learner.bits[1, 0] ^= 1
    x[:, :8] = 0  # of the weight that differs
    assert learner.predict(x, "binary").scores[:, 0].tolist() == [1, 1]
    with pytest.raises(ConfigError, match="does not tell them apart"):
        binary(learner, x)


class Shared(Learner):
    """One network for all tasks."""


def test_what_is_refused() -> None:
    shared = Shared(nn.Linear(12, 3), 2)
    for task in range(2):
        shared.add_task()
        shared.begin_task(task)
        shared.end_task()
    x: Tensor = torch.randn(4, 12)
    for options in ({"score": "one_shot"}, {"score": "binary"}, {"score": OneShot(per_image=True)}):
        with pytest.raises(ConfigError, match="tasks 0 and 1 have the same weights"):
            shared.eval().predict(x, **options)
    assert shared.predict(x, "one_shot", tasks=[0]).tasks.tolist() == [0] * 4
    learner = subnetworks(2)
    with pytest.raises(ConfigError, match="needs outputs beyond the 4 classes"):
        learner.predict(x.double(), "one_shot", objective="g")
    with pytest.raises(InferenceError, match="not finite"):
        learner.predict(torch.full((4, 12), torch.nan).double(), "one_shot", per_image=True)
    with pytest.raises(ConfigError, match="rows=1 is of images that share a task"):
        OneShot(rows=1, per_image=True)
    with pytest.raises(ConfigError, match="base=1 is out of range"):
        Binary(base=1)
