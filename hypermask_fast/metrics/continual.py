"""Metrics of continual learning by definition, from one matrix of accuracies.

R has the shape (T + 1, T) and is in percent: R[0] is measured before training, R[i] after the i-th
task, and R[i, j] is the accuracy on task j (counted from 0), NaN where it was not measured. So task
j is learned between R[j] and R[j + 1].

In the formulas t is the number of tasks learned so far: the last row with a value for a learned
task. A metric that needs a missing value, or two tasks where there is one, is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Array = NDArray[np.float64]


def learned(accuracy: ArrayLike) -> tuple[_Array, int]:
    """Return R as float64 and t, the number of tasks learned so far.

    Raises:
        ValueError: R is not (T + 1, T).
    """
    matrix = np.asarray(accuracy, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1 or matrix.shape[1] == 0:
        raise ValueError(
            f"accuracy has the shape {matrix.shape}; give (T + 1, T): a row before training and a "
            "row after each of T tasks"
        )
    measured = np.tril(~np.isnan(matrix), -1).any(axis=1)
    return matrix, int(np.flatnonzero(measured)[-1]) if measured.any() else 0


def _mean(values: _Array) -> float:
    return float(values.mean()) if values.size else float("nan")


def acc_final(accuracy: ArrayLike) -> float:
    """Mean accuracy over the learned tasks at the end: 1/t * sum_{j<t} R[t, j].

    Average accuracy (ACC) of GEM, Mammoth, continuum, ExSSNeT and HyperMask.
    """
    matrix, t = learned(accuracy)
    return _mean(matrix[t, :t])


def acc_final_weighted(accuracy: ArrayLike, counts: Sequence[int] | ArrayLike) -> float:
    """Accuracy over all test examples at the end: sum_{j<t} n_j R[t, j] / sum_{j<t} n_j.

    The last point of the top-1 curve of PyCIL and PILOT, whose one test set grows with the classes.

    Args:
        accuracy: R, (T + 1, T).
        counts: n, the number of test examples of each task, (T,).

    Raises:
        ValueError: ``counts`` has another length, or its sum is not positive.
    """
    matrix, t = learned(accuracy)
    weights = np.asarray(counts, dtype=np.float64)
    if weights.shape != matrix.shape[1:] or (weights < 0).any() or not weights[: t or 1].any():
        raise ValueError(
            f"counts={weights.tolist()} does not fit {matrix.shape[1]} tasks; give the number of "
            "test examples of each"
        )
    return float(np.average(matrix[t, :t], weights=weights[:t])) if t else float("nan")


def aia(accuracy: ArrayLike) -> float:
    """Average incremental accuracy: 1/t * sum_{1<=i<=t} (1/i * sum_{j<i} R[i, j]).

    AIA of continuum; AAA elsewhere. PyCIL and PILOT call it the average accuracy, and weight each
    inner mean by the number of test examples.
    """
    matrix, t = learned(accuracy)
    return _mean(np.array([matrix[i, :i].mean() for i in range(1, t + 1)]))


def learning_acc(accuracy: ArrayLike) -> float:
    """Mean accuracy on each task just after it was learned: 1/t * sum_{j<t} R[j + 1, j].

    Learning accuracy (LA) of MER; the mean of the matrix's diagonal.
    """
    matrix, t = learned(accuracy)
    return _mean(np.diagonal(matrix[1:])[:t])


def bwt_gem(accuracy: ArrayLike) -> float:
    """Backward transfer: 1/(t-1) * sum_{j<t-1} (R[t, j] - R[j + 1, j]); negative is forgetting.

    BWT of GEM, Mammoth and HyperMask. Avalanche's BWT is the same difference task by task.
    """
    matrix, t = learned(accuracy)
    return _mean((matrix[t] - np.diagonal(matrix[1:]))[: max(t - 1, 0)])


def fwt_gem(accuracy: ArrayLike) -> float:
    """Forward transfer over the untrained network: 1/(t-1) * sum_{0<j<t} (R[j, j] - R[0, j]).

    FWT of GEM, Mammoth and HyperMask; Avalanche's is the same difference task by task. It needs
    R[0], and the accuracy on each task just before it is learned.
    """
    matrix, t = learned(accuracy)
    return _mean((np.diagonal(matrix) - matrix[0])[1:t])


def fwt_nobaseline(accuracy: ArrayLike) -> float:
    """Mean accuracy on each task just before it is learned: 1/(t-1) * sum_{0<j<t} R[j, j].

    GEM's FWT without the random baseline. Continuum's FWT also leaves the baseline out.
    """
    matrix, t = learned(accuracy)
    return _mean(np.diagonal(matrix)[1:t])


def forgetting_diag(accuracy: ArrayLike) -> float:
    """Loss since each task was learned: 1/(t-1) * sum_{j<t-1} (R[j + 1, j] - R[t, j]).

    Forgetting of Avalanche. It is the negative of ``bwt_gem``.
    """
    matrix, t = learned(accuracy)
    return _mean((np.diagonal(matrix[1:]) - matrix[t])[: max(t - 1, 0)])


def forgetting_max(accuracy: ArrayLike, *, include_last: bool = True) -> float:
    """Loss since the best time: 1/(t-1) * sum_{j<t-1} (max_{j<i<=t} R[i, j] - R[t, j]).

    Forgetting of Mammoth, PyCIL and PILOT, never negative. With ``include_last=False`` the maximum
    is over i < t only: forgetting of Chaudhry et al. (2018, equation 3) and continuum, which is
    negative where a task is at its best at the end.
    """
    matrix, t = learned(accuracy)
    last = t + 1 if include_last else t
    losses = [matrix[j + 1 : last, j].max() - matrix[t, j] for j in range(t - 1)]
    return _mean(np.array(losses))


_OF_MATRIX = (
    acc_final,
    aia,
    learning_acc,
    bwt_gem,
    fwt_gem,
    fwt_nobaseline,
    forgetting_diag,
    forgetting_max,
)
NAMES = tuple(metric.__name__ for metric in (*_OF_MATRIX, acc_final_weighted))
"""Of all metrics; the last one needs the number of test examples of each task."""


def summary(
    accuracy: ArrayLike, counts: Sequence[int] | ArrayLike | None = None
) -> dict[str, float]:
    """Return every metric that there is data for, by its name, in percent.

    Args:
        accuracy: R, (T + 1, T).
        counts: The number of test examples of each task, (T,), for ``acc_final_weighted``. Default:
            without it.

    Raises:
        ValueError: R or ``counts`` has another shape.
    """
    found = {metric.__name__: metric(accuracy) for metric in _OF_MATRIX}
    if counts is not None:
        found[acc_final_weighted.__name__] = acc_final_weighted(accuracy, counts)
    return found


def definitions() -> dict[str, str]:
    """Return the definition of each metric in one sentence with its formula, by name."""
    texts = {each.__name__: each.__doc__ or "" for each in (*_OF_MATRIX, acc_final_weighted)}
    return {name: " ".join(text.split("\n\n")[0].split()) for name, text in texts.items()}
