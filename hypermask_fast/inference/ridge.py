"""Scores of tasks by ridge regression on random features of the input: sums alone, no images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.fields import setting
from hypermask_fast.inference.base import Batches, Evidence, Score, by_id, check_finite
from hypermask_fast.methods.base import Learner

_CLASSES = ("ridge", "output")
_FACTORS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_HELD_OUT = 5
"""One of so many rows of a class decides how large the ridge is."""
_PART = "sums."


@dataclass(frozen=True)
class Sums:
    """What ridge regression has to know of rows of features.

    Attributes:
        gram: (features, features) float64, the sum of the rows' outer products.
        of_classes: For each task (classes, features) float64, the sums of its classes' rows.
    """

    gram: Tensor
    of_classes: Mapping[int, Tensor]

    def __add__(self, other: Sums) -> Sums:
        classes = {task: s + other.of_classes[task] for task, s in self.of_classes.items()}
        return Sums(self.gram + other.gram, classes)

    def right_side(self) -> Tensor:
        """Return the sums of all classes of all tasks in the order of their ids, a column each."""
        return torch.cat([self.of_classes[task] for task in sorted(self.of_classes)]).T

    def solved(self, factor: float) -> Tensor | None:
        """Return the weights (features, classes of all tasks); None where rounding forbids it.

        Args:
            factor: The ridge by the mean of the Gram matrix's diagonal.
        """
        gram = self.gram.clone()
        gram.diagonal().add_(factor * gram.diagonal().mean())
        triangle, info = torch.linalg.cholesky_ex(gram)
        return None if int(info) else torch.cholesky_solve(self.right_side(), triangle)

    def loss(self, weights: Tensor) -> float:
        """Return the squared error of weights on these rows, but for a constant."""
        return float((weights * (self.gram @ weights - 2 * self.right_side())).sum())


class Statistics(NamedTuple):
    """Of the rows that weights are fitted to, and of those that decide between them."""

    fit: Sums
    held_out: Sums


@dataclass(frozen=True)
class Ridge(Score):
    """The largest output of a task's classes by ridge regression on random features of the input.

    As RanPAC (McDonnell et al. 2023), on the inputs themselves: features are the positive parts of
    fixed random projections, and a constant. Of the training data only sums are kept, to which each
    task adds its own: tasks that come one after the other, in any order, end with the solution of
    all data together. Of every 5 rows of a class one decides which of 7 ridges has the least
    squared error; the weights are then those of all rows.

    The task does not depend on what the learner learned, its class does. It takes
    ``32 * (width + 1)**2`` bytes, of which half are kept: 64 MB for a width of 2,000, 400 MB for
    5,000. Fitting n rows takes ``n * width * (width + inputs)`` multiplications, and 8
    factorizations.

    Attributes:
        statistics: What was summed up; None before :meth:`fitted`.
        weights: (features, classes of all tasks) float64, those of the first task first.
        factor: The ridge that was chosen, by the mean of the Gram matrix's diagonal.

    Raises:
        ConfigError: An option is unknown, of another type or out of range.
    """

    needs_training_data: ClassVar[bool] = True
    takes_several: ClassVar[bool] = False

    width: int = setting(2000, "random features of the input", low=1)
    seed: int = setting(0, "of the random features", low=0)
    ridge: float | None = setting(
        None, "factor of the mean diagonal, in place of the one that is chosen", above=0.0
    )
    classes: str = setting(
        "output", "the class within a task is the regression's, or the network's", choices=_CLASSES
    )
    statistics: Statistics | None = field(default=None, repr=False, compare=False)
    projection: Tensor | None = field(default=None, repr=False, compare=False)
    weights: Tensor | None = field(default=None, repr=False, compare=False)
    factor: float | None = field(default=None, repr=False, compare=False)

    def memory_bytes(self) -> int:
        return 32 * (self.width + 1) ** 2

    def fitted(self, learner: Learner, data: Mapping[Any, Batches]) -> Self:
        """Return the score with the data of these tasks, beside what it has.

        Args:
            learner: The learner, for the classes of its tasks.
            data: Training data by task id.

        Raises:
            ConfigError: A task is known already, a class has no rows, or no row is left to choose
                the ridge with.
            ValueError: Inputs are not finite, or of another shape than those before.
        """
        found = self
        for task, batches in by_id(learner, data).items():
            found = found._with_task(learner, task, batches)
        return found._solved()

    def _with_task(self, learner: Learner, task: int, batches: Batches) -> Self:
        if self.statistics is not None and task in self.statistics.fit.of_classes:
            raise ConfigError(
                f"the rows of task {task} are in the sums already; fit a new Ridge, or other tasks"
            )
        known = learner.tasks[task].classes
        seen = torch.zeros(0 if known is None else len(known), dtype=torch.int64)
        grams: list[Tensor] | None = None
        of_classes: list[list[Tensor]] = [[], []]
        projection = self.projection
        for x, y in (batch for batch in batches if len(batch[0])):
            if projection is None:
                projection = self._drawn(x)
            features = self._features(x, projection)
            check_finite(features.sum(1)[None], [task], "sum of features")
            more = int(y.max()) + 1 - len(seen)
            seen = F.pad(seen, (0, max(0, more)))
            held = _places(y.cpu(), seen) % _HELD_OUT == _HELD_OUT - 1
            grams = grams or self._grams(features)
            for part, rows in enumerate((~held, held)):
                chosen = features[rows.to(features.device)]
                grams[part].addmm_(chosen.T, chosen)
                one_hot = F.one_hot(y[rows.to(y.device)], len(seen)).to(chosen)
                of_classes[part].append(one_hot.T @ chosen)
        missing = (seen == 0).nonzero().flatten().tolist()
        if grams is None or missing:
            what = f"class {missing[0]} of task {task}" if missing else f"task {task}"
            raise ConfigError(f"{what} has no training rows; give some of each class")
        sums = [
            Sums(gram, {**self._of_classes(part), task: _summed(parts, len(seen))})
            for part, (gram, parts) in enumerate(zip(grams, of_classes, strict=True))
        ]
        return replace(self, statistics=Statistics(*sums), projection=projection)

    def _grams(self, features: Tensor) -> list[Tensor]:
        if self.statistics is None:
            return [features.new_zeros(features.shape[1], features.shape[1]) for _ in range(2)]
        return [sums.gram.clone() for sums in self.statistics]

    def _of_classes(self, part: int) -> Mapping[int, Tensor]:
        return {} if self.statistics is None else self.statistics[part].of_classes

    def _solved(self) -> Self:
        if self.statistics is None:
            return self
        fit, held_out = self.statistics
        factor = self.ridge
        if factor is None:
            if not bool(held_out.gram.diagonal()[-1]):
                raise ConfigError(
                    f"no class has {_HELD_OUT} training rows, one of which would choose the ridge; "
                    "give more, or ridge="
                )
            solved = {factor: fit.solved(factor) for factor in _FACTORS}
            losses = {f: held_out.loss(w) for f, w in solved.items() if w is not None}
            factor = min(losses, key=losses.__getitem__, default=_FACTORS[-1])
        weights = (fit + held_out).solved(factor)
        if weights is None:
            raise ConfigError(
                f"the ridge {factor} is too small for the rounding of the sums; give a larger one"
            )
        return replace(self, weights=weights, factor=factor)

    def _drawn(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        size = (x[0].numel(), self.width)
        drawn = torch.randn(size, generator=generator, dtype=torch.float64)
        return (drawn / size[0] ** 0.5).to(x.device)

    def _features(self, x: Tensor, projection: Tensor) -> Tensor:
        rows = x.flatten(1).to(projection)
        if rows.shape[1] != len(projection):
            raise ValueError(
                f"inputs have {rows.shape[1]} entries each and those of the sums had "
                f"{len(projection)}; give inputs of one shape"
            )
        return F.pad((rows @ projection).relu_(), (0, 1), value=1.0)

    def evidence(
        self, learner: Learner, x: Tensor, tasks: Sequence[int], batch_size: int
    ) -> Evidence:
        known = {} if self.statistics is None else self.statistics.fit.of_classes
        missing = [task for task in tasks if task not in known]
        if missing or self.weights is None or self.projection is None:
            raise ConfigError(
                f"the sums lack tasks {missing}; call fitted() with their training data"
            )
        outputs = torch.cat(
            [self._features(rows, self.projection) @ self.weights for rows in x.split(batch_size)]
        )
        ids = sorted(known)
        parts = dict(zip(ids, outputs.split([len(known[i]) for i in ids], 1), strict=True))
        best, places = zip(*(parts[task].max(1) for task in tasks), strict=True)
        scores = torch.stack(best)
        check_finite(scores, tasks, "output of the regression")
        return Evidence(scores, torch.stack(places) if self.classes == "ridge" else None)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that was summed up, as tensors by name, for a file of safetensors.

        Raises:
            ConfigError: Nothing was.
        """
        if self.statistics is None or self.projection is None:
            raise ConfigError("nothing was summed up yet; call fitted() with training data")
        state = {"seed": torch.tensor(self.seed), "inputs": torch.tensor(len(self.projection))}
        for name, sums in self.statistics._asdict().items():
            state[f"{name}.gram"] = sums.gram
            state |= {f"{name}.{_PART}{task}": s for task, s in sums.of_classes.items()}
        return state

    def with_state(self, state: Mapping[str, Tensor]) -> Self:
        """Return the score with what :meth:`state_dict` returned.

        Raises:
            CheckpointError: It is of another width or seed, or a part is missing.
        """
        parts = Statistics._fields
        try:
            grams = [state[f"{name}.gram"] for name in parts]
            seed, inputs = int(state["seed"]), int(state["inputs"])
            tasks = [int(k.rpartition(_PART)[2]) for k in state if k.startswith(f"fit.{_PART}")]
            sums = [
                Sums(gram, {task: state[f"{name}.{_PART}{task}"] for task in tasks})
                for name, gram in zip(parts, grams, strict=True)
            ]
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"the state of Ridge lacks {error}; give what state_dict() returned"
            ) from error
        if (len(grams[0]) - 1, seed) != (self.width, self.seed):
            raise CheckpointError(
                f"the state is of width={len(grams[0]) - 1}, seed={seed} and the score has "
                f"width={self.width}, seed={self.seed}; make it with those"
            )
        projection = self._drawn(grams[0].new_empty(1, inputs))
        loaded = replace(self, statistics=Statistics(*sums), projection=projection)
        return loaded._solved()


def _places(labels: Tensor, seen: Tensor) -> Tensor:
    """Return each row's place among the rows of its class, and count them in ``seen``."""
    places = torch.empty_like(labels)
    for label in labels.unique().tolist():
        rows = labels == label
        count = int(rows.sum())
        places[rows] = torch.arange(count) + seen[label]
        seen[label] += count
    return places


def _summed(parts: Sequence[Tensor], classes: int) -> Tensor:
    """Return the sum of parts, of which the earlier may lack classes."""
    padded = [F.pad(part, (0, 0, 0, classes - len(part))) for part in parts]
    return torch.stack(padded).sum(0)
