"""Ridge regression on random features: sums that tasks add to, against a joint solve in numpy."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hypermask_fast.errors import CheckpointError, ConfigError, InferenceError
from hypermask_fast.inference.calibration import calibrate
from hypermask_fast.inference.ridge import Ridge
from tests.support.inference_cases import Recorded

CLASSES = ((7, 3), (5, 1, 8), (0, 2))
SIZES = [len(classes) for classes in CLASSES]
Data = dict[int, list[tuple[Tensor, Tensor]]]


@pytest.fixture
def learner() -> Recorded:
    return Recorded(torch.zeros(3, 40, 3), classes=CLASSES)


@pytest.fixture
def data() -> Data:
    """Three tasks of 60 rows in batches of several sizes."""
    found: Data = {}
    for task, count in enumerate(SIZES):
        labels = torch.randperm(60) % count
        x = torch.randn(60, 2, 3) + 2 * torch.randn(count, 2, 3)[labels]
        sizes = (11, 0, 30, 19)
        found[task] = list(zip(x.split(sizes), labels.split(sizes), strict=True))
    return found


def joint(score: Ridge, data: Data, x: Tensor) -> tuple[Any, Any, float]:
    """Outputs and the best ridge by numpy's solver, from all rows together."""
    width, inputs = score.width, 6
    generator = torch.Generator().manual_seed(score.seed)
    drawn = torch.randn(inputs, width, generator=generator, dtype=torch.float64)
    drawn = drawn.numpy() / np.sqrt(inputs)

    def features(rows: Tensor) -> Any:
        flat = np.maximum(rows.flatten(1).double().numpy() @ drawn, 0)
        return np.hstack([flat, np.ones((len(flat), 1))])

    rows, columns, held = [], [], []
    for task in sorted(data):
        labels = torch.cat([y for _, y in data[task]]).numpy()
        rows.append(features(torch.cat([x for x, _ in data[task]])))
        columns.append(sum(SIZES[:task]) + labels)
        counts: dict[int, int] = {}
        for label in labels.tolist():
            counts[label] = counts.get(label, 0) + 1
            held.append(counts[label] % 5 == 0)
    a, out = np.vstack(rows), np.hstack(held)
    y = np.eye(sum(SIZES))[np.hstack(columns)]

    def solve(a: Any, y: Any, factor: float) -> Any:
        gram = a.T @ a
        gram += factor * np.trace(gram) / len(gram) * np.eye(len(gram))
        return np.linalg.solve(gram, a.T @ y)

    factors = [10.0**power for power in range(-6, 1)]
    losses = [((a[out] @ solve(a[~out], y[~out], f) - y[out]) ** 2).sum() for f in factors]
    best = factors[int(np.argmin(losses))]
    return features(x) @ solve(a, y, best), losses, best


def test_it_is_the_joint_solution_of_all_rows(learner: Recorded, data: Data) -> None:
    x = torch.randn(40, 2, 3)
    score = Ridge(width=30, seed=3).fitted(learner, data)
    outputs, losses, best = joint(score, data, x)
    assert np.ptp(losses) > 0
    assert score.factor == pytest.approx(best)
    ends = np.cumsum(SIZES)
    parts = np.split(outputs, ends[:-1], axis=1)
    found = learner.predict(
        x.double(), Ridge(width=30, seed=3, classes="ridge").fitted(learner, data)
    )
    wanted = np.stack([part.max(1) for part in parts])
    np.testing.assert_allclose(found.scores, wanted, rtol=1e-9, atol=1e-9)
    for row, (task, number) in enumerate(zip(found.tasks.tolist(), found.classes, strict=True)):
        assert task == wanted[:, row].argmax()
        assert CLASSES[task][parts[task][row].argmax()] == int(number)


def test_tasks_in_any_order_one_by_one_give_the_same_answers(learner: Recorded, data: Data) -> None:
    x = torch.randn(40, 2, 3)
    together = Ridge(width=30).fitted(learner, data)
    expected = together.evidence(learner, x, (0, 1, 2), 7)
    for order in permutations(range(3)):
        score = Ridge(width=30)
        for task in order:
            score = score.fitted(learner, {task: data[task]})
        assert score.factor == together.factor
        found = score.evidence(learner, x, (0, 1, 2), 40)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-9, atol=1e-9)
        assert torch.equal(found.scores.argmax(0), expected.scores.argmax(0))


def test_earlier_scores_stay_as_they_were(learner: Recorded, data: Data) -> None:
    first = Ridge(width=8).fitted(learner, {0: data[0]})
    gram, weights = first.statistics.fit.gram.clone(), first.weights.clone()
    first.fitted(learner, {1: data[1]})
    assert torch.equal(first.statistics.fit.gram, gram)
    assert torch.equal(first.weights, weights)
    assert list(first.statistics.fit.of_classes) == [0]


def test_how_rows_are_cut_into_batches_does_not_matter(learner: Recorded, data: Data) -> None:
    whole = {t: [tuple(map(torch.cat, zip(*batches, strict=True)))] for t, batches in data.items()}
    scores = [Ridge(width=30).fitted(learner, given) for given in (data, whole)]
    for a, b in zip(*(s.state_dict().values() for s in scores), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_state_is_a_file_of_tensors(tmp_path: Path, learner: Recorded, data: Data) -> None:
    score = Ridge(width=12, seed=2).fitted(learner, data)
    save_file(score.state_dict(), tmp_path / "ridge.safetensors")
    state = load_file(tmp_path / "ridge.safetensors")
    loaded = Ridge(width=12, seed=2).with_state(state)
    assert torch.equal(loaded.weights, score.weights)
    assert loaded == score
    with pytest.raises(CheckpointError, match="of width=12, seed=2 and the score has width=12"):
        Ridge(width=12).with_state(state)
    del state["held_out.sums.1"]
    with pytest.raises(CheckpointError, match=r"lacks 'held_out.sums.1'; give what"):
        Ridge(width=12, seed=2).with_state(state)
    with pytest.raises(ConfigError, match="nothing was summed up yet"):
        Ridge().state_dict()


def test_it_is_calibrated_and_answers_unknown(learner: Recorded, data: Data) -> None:
    score = Ridge(width=30, classes="ridge").fitted(learner, data)
    calibration = calibrate(learner, score, data, unknown_rate=0.25)
    rows = torch.cat([x for batches in data.values() for x, _ in batches])
    found = learner.predict(rows, score, calibration=calibration)
    assert int((found.tasks == -1).sum()) == 45
    assert (found.classes[found.tasks == -1] == -1).all()


def test_the_given_ridge_is_taken(learner: Recorded, data: Data) -> None:
    score = Ridge(width=8, ridge=0.5).fitted(learner, data)
    assert score.factor == 0.5
    chosen = Ridge(width=8).fitted(learner, data)
    assert not torch.equal(score.weights, chosen.weights)


def test_more_features_than_rows_are_solved(learner: Recorded, data: Data) -> None:
    score = Ridge(width=400).fitted(learner, data)
    assert score.weights.isfinite().all()
    assert score.memory_bytes() == 32 * 401**2


def test_what_it_refuses(learner: Recorded, data: Data) -> None:
    fitted = Ridge(width=8).fitted(learner, {0: data[0], 1: data[1]})
    x, y = data[0][0]
    with pytest.raises(ConfigError, match=r"the sums lack tasks \[2\]; call fitted"):
        learner.predict(torch.randn(4, 2, 3), fitted)
    with pytest.raises(ConfigError, match="the rows of task 1 are in the sums already"):
        fitted.fitted(learner, {1: data[1]})
    with pytest.raises(ConfigError, match="task 0 has no training rows"):
        Ridge().fitted(learner, {0: []})
    with pytest.raises(ConfigError, match="class 1 of task 0 has no training rows"):
        Ridge().fitted(learner, {0: [(x[y == 0], y[y == 0])]})
    with pytest.raises(ConfigError, match="no class has 5 training rows"):
        Ridge().fitted(learner, {0: [(torch.randn(8, 2, 3), torch.arange(8) % 2)]})
    with pytest.raises(ValueError, match="inputs have 5 entries each and those of the sums had 6"):
        fitted.fitted(learner, {2: [(torch.randn(8, 5), torch.arange(8) % 2)]})
    bad = torch.randn(8, 6)
    bad[3, 1] = torch.nan
    with pytest.raises(InferenceError, match="sum of features of task 2 is not finite in 1 of 8"):
        fitted.fitted(learner, {2: [(bad, torch.arange(8) % 2)]})
    with pytest.raises(InferenceError, match="not finite in 1 of 8"):
        learner.predict(bad, fitted, tasks=[0, 1])
    with pytest.raises(ConfigError, match="width=0 is out of range"):
        Ridge(width=0)
