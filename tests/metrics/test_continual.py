"""Metrics from the accuracy matrix against hand-computed numbers and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hypermask_fast.metrics import continual

_NAN = float("nan")
# Rows: before training, after tasks 0, 1 and 2.
_R = np.array([[10.0, 20.0, 30.0], [90.0, 26.0, 31.0], [94.0, 80.0, 40.0], [85.0, 83.0, 70.0]])
_EXPECTED = {
    "acc_final": 238 / 3,  # 85, 83, 70
    "aia": (90 + 87 + 238 / 3) / 3,
    "learning_acc": 80.0,  # 90, 80, 70
    "bwt_gem": -1.0,  # (85 - 90) and (83 - 80)
    "fwt_gem": 8.0,  # (26 - 20) and (40 - 30)
    "fwt_nobaseline": 33.0,  # 26 and 40
    "forgetting_diag": 1.0,
    "forgetting_max": 4.5,  # (94 - 85) and (83 - 83)
}


def _random(tasks: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, (tasks + 1, tasks))


def _by_loops(matrix: np.ndarray) -> dict[str, float]:
    """Compute the metrics with the published indices: a[i][j] after task i, r[j] untrained."""
    tasks = matrix.shape[1]
    r, a = matrix[0].tolist(), matrix[1:].tolist()
    last, old, new = a[tasks - 1], range(tasks - 1), range(1, tasks)
    curve = []
    for i in range(tasks):
        curve.append(sum(a[i][j] for j in range(i + 1)) / (i + 1))
    return {
        "acc_final": sum(last) / tasks,
        "aia": sum(curve) / tasks,
        "learning_acc": sum(a[j][j] for j in range(tasks)) / tasks,
        "bwt_gem": sum(last[j] - a[j][j] for j in old) / (tasks - 1),
        "fwt_gem": sum(a[j - 1][j] - r[j] for j in new) / (tasks - 1),
        "fwt_nobaseline": sum(a[j - 1][j] for j in new) / (tasks - 1),
        "forgetting_diag": sum(a[j][j] - last[j] for j in old) / (tasks - 1),
        "forgetting_max": sum(max(a[i][j] for i in range(j, tasks)) - last[j] for j in old)
        / (tasks - 1),
    }


@pytest.mark.parametrize("name", _EXPECTED)
def test_metric_equals_the_number_computed_by_hand(name: str) -> None:
    assert getattr(continual, name)(_R) == pytest.approx(_EXPECTED[name], rel=1e-14)


@pytest.mark.parametrize("tasks", [2, 3, 10])
def test_summary_equals_plain_loops(tasks: int) -> None:
    matrix = _random(tasks)
    # Sums of at most 10 + 45 numbers below 100 in another order.
    assert continual.summary(matrix) == pytest.approx(_by_loops(matrix), rel=1e-12, abs=1e-12)


def test_forgetting_without_the_last_row_may_be_negative() -> None:
    # Chaudhry et al.: (max(90, 94) - 85) and (80 - 83).
    assert continual.forgetting_max(_R, include_last=False) == pytest.approx(3.0)


def test_weighted_accuracy_counts_examples() -> None:
    assert continual.acc_final_weighted(_R, [1, 1, 2]) == pytest.approx((85 + 83 + 140) / 4)
    assert continual.acc_final_weighted(_R, [5, 5, 5]) == pytest.approx(continual.acc_final(_R))


def test_one_task_has_no_transfer() -> None:
    result = continual.summary([[10.0], [90.0]])
    assert {name for name, value in result.items() if math.isnan(value)} == {
        *("bwt_gem", "fwt_gem", "fwt_nobaseline", "forgetting_diag", "forgetting_max")
    }
    assert result["acc_final"] == result["aia"] == result["learning_acc"] == 90.0


def test_unfinished_run_is_measured_on_its_learned_tasks() -> None:
    matrix = _random(5)
    matrix[4:] = _NAN
    shorter = matrix[:4, :3]
    assert continual.summary(matrix) == pytest.approx(continual.summary(shorter))
    weights = [3, 1, 2]
    assert continual.acc_final_weighted(matrix, [*weights, 9, 9]) == pytest.approx(
        continual.acc_final_weighted(shorter, weights)
    )


def test_metrics_need_only_the_cells_of_their_formula() -> None:
    lower = _R.copy()
    lower[0] = _NAN
    lower[np.triu_indices(3)] = _NAN  # row j is before task j is learned
    result = continual.summary(lower)
    for name, value in _EXPECTED.items():
        if name.startswith("fwt"):
            assert math.isnan(result[name])
        else:
            assert result[name] == pytest.approx(value)


def test_missing_cell_of_a_learned_task_is_not_skipped() -> None:
    matrix = _R.copy()
    matrix[3, 0] = _NAN
    result = continual.summary(matrix)
    assert math.isnan(result["acc_final"])
    assert math.isnan(result["bwt_gem"])
    assert math.isnan(result["forgetting_max"])
    assert result["learning_acc"] == pytest.approx(80.0)


def test_row_with_only_unlearned_tasks_is_not_a_learned_one() -> None:
    matrix = _R.copy()
    matrix[2, :2] = matrix[3] = _NAN  # only the next task was measured after task 1
    assert continual.acc_final(matrix) == 90.0


def test_nothing_learned_gives_nan() -> None:
    matrix = np.full((4, 3), _NAN)
    matrix[0] = 10.0
    assert all(math.isnan(value) for value in continual.summary(matrix).values())
    assert math.isnan(continual.acc_final_weighted(matrix, [1, 1, 1]))


@pytest.mark.parametrize("shape", [(3, 3), (4,), (1, 0), (5, 3)], ids=str)
def test_other_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        continual.summary(np.zeros(shape))


@pytest.mark.parametrize("counts", [[1, 1], [0, 0, 0], [1, -1, 1]], ids=str)
def test_counts_that_do_not_fit_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="counts"):
        continual.acc_final_weighted(_R, counts)
