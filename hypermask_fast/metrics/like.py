"""The metrics of a run by the names, formulas and units of other libraries.

R, T and t are those of :mod:`hypermask_fast.metrics.continual`; n_j is the number of test examples
of task j. What these libraries print depends on R alone, so that their numbers can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.metrics import continual

Named = dict[str, float | list[float]]


def avalanche(accuracy: ArrayLike, counts: Sequence[int]) -> Named:
    """Return Avalanche's metrics of the evaluation after the last task, as fractions.

    ``Top1_Acc_Exp`` of experience j is R[t, j], and ``Top1_Acc_Stream`` the share of all examples
    of the learned experiences. ``ExperienceForgetting`` is R[j + 1, j] - R[t, j] and
    ``ExperienceBWT`` its negative, j < t - 1; ``StreamForgetting`` and ``StreamBWT`` are their
    means. ``StreamForwardTransfer`` is the mean of R[j, j] - R[0, j], 0 < j < t, which needs an
    evaluation of the whole stream before training.
    """
    matrix, t = continual.learned(accuracy)
    where = "eval_phase/test_stream"
    found: Named = {
        f"Top1_Acc_Exp/{where}/Task{j:03}/Exp{j:03}": _fraction(matrix[t, j]) for j in range(t)
    }
    found[f"Top1_Acc_Stream/{where}"] = _fraction(continual.acc_final_weighted(matrix, counts))
    lost = [matrix[j + 1, j] - matrix[t, j] for j in range(max(t - 1, 0))]
    for name, sign in (("Forgetting", 1.0), ("BWT", -1.0)):
        for j, value in enumerate(lost):
            found[f"Experience{name}/{where}/Task{j:03}/Exp{j:03}"] = _fraction(sign * value)
        mean = sign * continual.forgetting_diag(matrix)
        found[f"Stream{name}/{where}"] = _fraction(mean)
    found[f"StreamForwardTransfer/{where}"] = _fraction(continual.fwt_gem(matrix))
    return found


def mammoth(accuracy: ArrayLike, counts: Sequence[int]) -> Named:
    """Return Mammoth's metrics in percent, of its setting with known tasks (Task-IL).

    ``accmean_task-il`` is 1/t * sum_j R[t, j], and ``accuracy_j_taskt`` R[t, j - 1].
    ``backward_transfer`` is the mean of R[t, j] - R[j + 1, j] and ``forgetting`` that of
    max_i R[i, j] - R[t, j] with the last row in the maximum, j < t - 1. ``forward_transfer`` is the
    mean of R[j, j] - R[0, j], 0 < j < t.
    """
    matrix, t = continual.learned(accuracy)
    found: Named = {"accmean_task-il": continual.acc_final(matrix)}
    found |= {f"accuracy_{j + 1}_task{t}": float(matrix[t, j]) for j in range(t)}
    return {
        **found,
        "backward_transfer": continual.bwt_gem(matrix),
        "forward_transfer": continual.fwt_gem(matrix),
        "forgetting": continual.forgetting_max(matrix),
    }


def pycil(accuracy: ArrayLike, counts: Sequence[int]) -> Named:
    """Return the metrics of PyCIL and PILOT in percent.

    ``CNN top1 curve`` has sum_{j<i} n_j R[i, j] / sum_{j<i} n_j after each task i, and
    ``Average Accuracy (CNN)`` is its mean. ``Forgetting (CNN)`` is the mean of
    max_i R[i, j] - R[t, j] with the last row in the maximum, j < t - 1. Their networks are not told
    the task; these values are of tasks that are known, as R is.
    """
    matrix, t = continual.learned(accuracy)
    weights = np.asarray(counts, dtype=np.float64)
    curve = [float(np.average(matrix[i, :i], weights=weights[:i])) for i in range(1, t + 1)]
    return {
        "CNN top1 curve": curve,
        "Average Accuracy (CNN)": float(np.mean(curve)) if curve else float("nan"),
        "Forgetting (CNN)": continual.forgetting_max(matrix),
    }


def gem(accuracy: ArrayLike, counts: Sequence[int]) -> Named:
    """Return what the code of GEM writes, as fractions.

    ``Final Accuracy`` is 1/t * sum_j R[t, j]. ``Backward`` is 1/t * sum_{j<t} (R[t, j] -
    R[j + 1, j]) and ``Forward`` 1/t * sum_{0<j<t} (R[j, j] - R[0, j]): its code divides by the
    number of tasks, the paper (and ``bwt_gem``, ``fwt_gem``) by one less.
    """
    matrix, t = continual.learned(accuracy)
    share = (t - 1) / t if t else float("nan")
    return {
        "Final Accuracy": _fraction(continual.acc_final(matrix)),
        "Backward": _fraction(continual.bwt_gem(matrix) * share if t > 1 else 0.0),
        "Forward": _fraction(continual.fwt_gem(matrix) * share if t > 1 else 0.0),
    }


def _fraction(percent: float) -> float:
    return float(percent) / 100.0 + 0.0  # and never -0


_LIBRARIES: dict[str, Callable[[ArrayLike, Sequence[int]], Named]] = {
    "avalanche": avalanche,
    "mammoth": mammoth,
    "pycil": pycil,
    "gem": gem,
}
LIBRARIES = tuple(_LIBRARIES)
"""Their names."""


def like(library: str, accuracy: ArrayLike, counts: Sequence[int] | None = None) -> Named:
    """Return metrics by the names of a library.

    Args:
        library: One of :data:`LIBRARIES`.
        accuracy: R, (T + 1, T), percent.
        counts: n, (T,). Default: tasks count alike.

    Raises:
        ConfigError: The library is unknown.
        ValueError: R or ``counts`` has another shape.
    """
    if library not in _LIBRARIES:
        raise ConfigError(
            f"like={library!r} is unknown{nearest(library, LIBRARIES)}; give one of "
            f"{', '.join(LIBRARIES)}"
        )
    tasks = np.asarray(accuracy).shape[-1]
    return _LIBRARIES[library](accuracy, [1] * tasks if counts is None else counts)


def formulas(library: str) -> str:
    """Return the formulas of a library's metrics in words."""
    text = _LIBRARIES[library].__doc__ or ""
    return " ".join(text.split())
