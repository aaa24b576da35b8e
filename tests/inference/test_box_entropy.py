"""Tasks that are told apart by HyperInterval's own boxes, against the same written in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError
from hypermask_fast.inference.box_entropy import BoxEntropy
from hypermask_fast.methods.hyperinterval.learner import HyperInterval
from hypermask_fast.networks import MLP
from tests.support.hyperinterval_cases import make
from tests.support.inference_cases import learned

CLASSES = ([4, 5, 6], [0, 1], [2, 3])


def boxed(**options: Any) -> HyperInterval:
    torch.manual_seed(0)
    learner = make(MLP(5, (4,), 3).double(), tasks=0, extent=2.0, **options)
    for classes in CLASSES:
        task = learner.add_task(classes=classes)
        learner.begin_task(task)
        learner.end_task()
    with torch.no_grad():
        for parameter in learner.hypernetwork.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return learner.eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(11, 5).double()


def plain_scores(
    learner: HyperInterval, x: Tensor, extent: float, weighted: bool
) -> tuple[list[list[float]], list[list[int]]]:
    """Of each task, the negative entropies and its classes, one sample after the other."""
    scores, places = [], []
    for task, classes in enumerate(CLASSES):
        low, mid, up = (part.numpy() for part in learner.bounds(x, task, extent=extent))
        scores.append([0.0] * len(x))
        places.append([int(row[: len(classes)].argmax()) for row in mid])
        for i in range(len(x)):
            z = mid[i, : len(classes)]
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            for c, share in enumerate(p):
                width = 0.001 + abs(up[i, c] - low[i, c]) if weighted else 1.0
                scores[-1][i] += share * np.log(share) / width
    return scores, places


@pytest.mark.parametrize("mode", ["task", "nested"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("extent", [None, 1.0])
def test_scores_are_entropies_of_the_boxes_middle(
    x: Tensor, mode: str, weighted: bool, extent: float | None
) -> None:
    learner = boxed(mode=mode)
    found = learner.predict(x, "box_entropy", extent=extent, weighted=weighted, batch_size=4)
    scores, places = plain_scores(learner, x, 2.0 if extent is None else extent, weighted)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-9, atol=1e-12)
    best = np.argmax(scores, 0)
    assert found.tasks.tolist() == best.tolist()
    assert found.classes.tolist() == [CLASSES[task][places[task][i]] for i, task in enumerate(best)]
    assert not np.allclose(scores[0], scores[1], atol=0)


@pytest.mark.parametrize("mode", ["task", "nested"])
def test_an_extent_is_that_of_a_learner_with_smaller_boxes(x: Tensor, mode: str) -> None:
    larger, smaller = boxed(mode=mode), boxed(mode=mode)
    smaller.extent = smaller.hypernetwork.extent = 1.0
    for task in range(3):
        found = larger.bounds(x, task, extent=1.0)
        for one, other in zip(found, smaller.bounds(x, task), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(larger.bounds(x, task).up, smaller.bounds(x, task).up)


@pytest.mark.parametrize("center", ["network", "exchanged"])
@pytest.mark.parametrize("mode", ["task", "nested"])
def test_every_score_of_outputs_looks_at_the_tasks_own_boxes(
    x: Tensor, mode: str, center: str
) -> None:
    """Of nested tasks too, whose outputs in evaluation are one network's."""
    arithmetic = "three_pass" if center == "exchanged" else "interval"
    learner = boxed(mode=mode, center=center, arithmetic=arithmetic)
    found = learner.predict(x, "entropy")
    own = learner.predict(x, "box_entropy")
    torch.testing.assert_close(found.scores, own.scores, rtol=1e-9, atol=1e-12)
    assert torch.equal(found.tasks, own.tasks)
    assert torch.equal(found.classes, own.classes)
    same = torch.equal(learner(x, 1)[:, :2], learner(x, 2)[:, :2])
    assert same == (mode == "nested")
    assert not torch.allclose(found.scores[1], found.scores[2])


def test_boxes_are_needed(x: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"needs boxes and HyperMask has none; use 'entropy'"):
        learned().predict(x, "box_entropy")
    with pytest.raises(ConfigError, match="extent"):
        BoxEntropy(extent=-1.0)
