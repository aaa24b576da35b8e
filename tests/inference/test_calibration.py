"""Scores on one scale: what each kind of calibration is, and what is answered "unknown"."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError
from hypermask_fast.inference.base import UNKNOWN
from hypermask_fast.inference.calibration import KINDS, Calibration, calibrate
from hypermask_fast.inference.outputs import Energy, Entropy
from tests.support.inference_cases import Recorded

TASKS, ROWS = 3, 40
"""Tasks, and validation rows of each."""


def skewed(seed: int = 0) -> Recorded:
    """Tasks whose own rows have higher energy, which is on another scale for each task."""
    generator = torch.Generator().manual_seed(seed)
    energy = torch.randn(TASKS, TASKS * ROWS, generator=generator, dtype=torch.float64)
    for task in range(TASKS):
        energy[task, task * ROWS : (task + 1) * ROWS] += 2.0
        energy[task] = energy[task] * (1 + 2 * task) + 7.0 * task
    noise = torch.randn(TASKS, TASKS * ROWS, 1, generator=generator, dtype=torch.float64)
    # logsumexp(a + log sigmoid(u), a + log sigmoid(-u)) = a
    parts = torch.cat((noise, -noise), 2).sigmoid().log()
    return Recorded(energy[:, :, None] + parts, classes=[(0, 1), (2, 3), (4, 5)])


def validation() -> dict[int, list[tuple[Tensor, Tensor]]]:
    """In two batches for each task."""
    data = {}
    for task in range(TASKS):
        rows = torch.arange(task * ROWS, (task + 1) * ROWS)
        data[task] = [(part, part % 2) for part in rows.split(25)]
    return data


LABELS = torch.arange(TASKS * ROWS) // ROWS


def log_likelihood(scores: Tensor) -> float:
    return float(scores.log_softmax(0)[LABELS, torch.arange(len(LABELS))].mean())


def only(kind: str, learner: Recorded, **options: Any) -> Calibration:
    return calibrate(learner, Energy(), validation(), kinds=[kind], **options)


def test_none_changes_nothing() -> None:
    learner = skewed()
    plain = learner.predict(torch.arange(len(LABELS)), Energy())
    found = learner.predict(torch.arange(len(LABELS)), Energy(), calibration=only("none", learner))
    assert torch.equal(found.scores, plain.scores)
    assert torch.equal(found.tasks, plain.tasks)


def test_standardized_scores_of_a_tasks_own_rows_have_mean_0_and_variance_1() -> None:
    learner = skewed()
    calibration = only("standardize", learner)
    scores = learner.predict(
        torch.arange(len(LABELS)), Energy(), calibration=calibration
    ).scores.numpy()
    for task in range(TASKS):
        own = scores[task, task == LABELS]
        assert own.mean() == pytest.approx(0, abs=1e-12)
        assert own.std() == pytest.approx(1, rel=1e-12)


def test_logistic_has_the_highest_likelihood_that_a_ridge_leaves() -> None:
    """No neighbour of what was found has a lower loss, in any direction."""
    learner = skewed()
    raw = learner.predict(torch.arange(len(LABELS)), Energy()).scores
    calibration = only("logistic", learner)
    deviation, mean = raw.std(1, unbiased=False), raw.mean(1)
    # In units of standardised scores: log of the scale, and shift.
    factor = calibration.scale * deviation
    shift = calibration.shift + calibration.scale * mean
    start = torch.stack((factor.log(), shift))

    def loss(p: Tensor) -> float:
        z = (raw - mean[:, None]) / deviation[:, None]
        likelihood = log_likelihood(z * p[0].exp()[:, None] + p[1][:, None])
        return -likelihood + 1e-3 * float(p.square().sum())

    best = loss(start)
    for place in range(2 * TASKS):
        for step in (-1e-3, 1e-3):
            moved = start.clone()
            moved.view(-1)[place] += step
            assert loss(moved) > best
    assert best < loss(torch.zeros_like(start))


def test_a_calibration_keeps_the_order_within_a_task() -> None:
    learner = skewed()
    raw = learner.predict(torch.arange(len(LABELS)), Energy()).scores
    for kind in KINDS:
        calibrated = only(kind, learner)(raw, range(TASKS))
        assert torch.equal(calibrated.argsort(1), raw.argsort(1)), kind


def test_what_is_right_most_often_on_validation_data_is_chosen() -> None:
    learner = skewed()
    calibration = calibrate(learner, Energy(), validation())
    accuracies = {}
    for kind in KINDS:
        found = learner.predict(
            torch.arange(len(LABELS)), Energy(), calibration=only(kind, learner)
        )
        accuracies[kind] = 100 * float((found.tasks == LABELS).double().mean())
    assert calibration.accuracies == pytest.approx(accuracies)
    assert calibration.kind == max(KINDS, key=accuracies.__getitem__)
    assert accuracies["none"] + 30 < accuracies[calibration.kind]


def test_without_a_difference_nothing_is_changed() -> None:
    """Each task is certain of its own rows alone: every kind is right everywhere."""
    logits = torch.zeros(TASKS, len(LABELS), 2)
    logits[LABELS, torch.arange(len(LABELS)), 0] = 9.0
    assert calibrate(Recorded(logits), Entropy(), validation()).kind == "none"


def test_tasks_that_are_told_apart_without_error_have_finite_scales() -> None:
    logits = torch.zeros(TASKS, len(LABELS), 2)
    logits[LABELS, torch.arange(len(LABELS)), 0] = 9.0
    for score in (Entropy(), Energy()):
        for kind in KINDS:
            found = calibrate(Recorded(logits), score, validation(), kinds=[kind])
            assert found.scale.isfinite().all()
            assert found.shift.isfinite().all()
            assert (found.scale > 0).all()
            assert found.accuracies == {kind: 100.0}


def test_entropies_of_0_are_calibrated_too() -> None:
    logits = torch.zeros(TASKS, len(LABELS), 2)
    logits[:, ::2, 0] = 1e4
    for kind in KINDS:
        found = calibrate(Recorded(logits), Entropy(), validation(), kinds=[kind])
        prediction = Recorded(logits).predict(torch.arange(9), calibration=found)
        assert prediction.scores.isfinite().all()


@pytest.mark.parametrize("rate", [0.0, 0.04, 0.25, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_the_share_of_validation_rows_is_unknown(kind: str, rate: float) -> None:
    learner = skewed()
    calibration = only(kind, learner, unknown_rate=rate)
    found = learner.predict(torch.arange(len(LABELS)), Energy(), calibration=calibration)
    unknown = found.tasks == UNKNOWN
    assert int(unknown.sum()) == int(rate * len(LABELS))
    assert torch.equal(found.classes == UNKNOWN, unknown)
    best = found.scores.amax(0)
    if rate:
        assert best[unknown].max() < best[~unknown].min()


def test_no_more_than_the_share_is_unknown_where_scores_are_equal() -> None:
    learner = Recorded(torch.zeros(TASKS, len(LABELS), 2))
    calibration = calibrate(learner, Energy(), validation(), unknown_rate=0.5)
    found = learner.predict(torch.arange(len(LABELS)), Energy(), calibration=calibration)
    assert not (found.tasks == UNKNOWN).any()


def test_batches_and_their_size_change_nothing() -> None:
    learner = skewed()
    once = calibrate(learner, Energy(), validation())
    again = calibrate(learner, Energy(), validation(), batch_size=7)
    np.testing.assert_array_equal(once.scale, again.scale)
    np.testing.assert_array_equal(once.shift, again.shift)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"unknown_rate": 1.0}, "unknown_rate=1.0", id="rate"),
        pytest.param({"unknown_rate": -0.1}, "unknown_rate=-0.1", id="negative"),
        pytest.param({"unknown_rate": float("nan")}, "unknown_rate=nan", id="nan"),
        pytest.param({"kinds": ["logistics"]}, "did you mean 'logistic'", id="kind"),
        pytest.param({"kinds": []}, "choose from", id="no-kind"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        calibrate(skewed(), Energy(), validation(), **options)


def test_tasks_without_validation_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="task 1 has no validation rows"):
        calibrate(skewed(), Energy(), {**validation(), 1: []})
