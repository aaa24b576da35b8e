"""Scores of tasks by the distance of features to the classes' prototypes (FeCAM)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import setting
from hypermask_fast.inference.base import Batches, Evidence, Score, by_id, check_finite, minus_log
from hypermask_fast.methods.base import Learner

_TUKEY = ("none", "root", "published")
_CLASSES = ("prototype", "output")
_IN_EVERY_ENTRY = 1e-8
"""Added to a covariance before it is inverted, to all of it and not to its diagonal alone."""


class ClassModels(NamedTuple):
    """What is known of a task's k classes, float64.

    Attributes:
        prototypes: (k, features), the means.
        covariances: (k, features, features), shrunk and normalised.
        inverses: (k, features, features).
    """

    prototypes: Tensor
    covariances: Tensor
    inverses: Tensor


@dataclass(frozen=True)
class FeCAM(Score):
    """The negative squared Mahalanobis distance to the nearest class of each task.

    Features are what the last layer reads, each task's under its own network. The covariance of a
    class is shrunk, and normalised to a correlation; prototypes and the features that are told
    apart have unit length, while covariances are of features as they are. The defaults are the
    published settings of HyperMask with FeCAM.

    Nothing is trained. It takes 16 bytes for each class and pair of features: 2 GiB for 100 classes
    and 1,000 features.

    Raises:
        ConfigError: An option is unknown, of another type or out of range.
    """

    needs_training_data: ClassVar[bool] = True

    shrinkage: int = setting(
        2,
        "how often a covariance is shrunk",
        "Its mean variance times alpha1 is added to the diagonal, the mean of its other entries "
        "that are not 0 times alpha2 to those",
        low=0,
    )
    alpha1: float = setting(1.0, "factor of the mean variance in shrinkage", low=0.0)
    alpha2: float = setting(1.0, "factor of the mean covariance in shrinkage", low=0.0)
    normalize_covariance: bool = setting(True, "divide covariances by the standard deviations")
    normalize_features: bool = setting(True, "give prototypes and features unit length")
    tukey: str = setting(
        "none",
        "root: the square root of all features; published: their square",
        "The published one is applied to prototypes and covariances twice",
        choices=_TUKEY,
    )
    classes: str = setting(
        "prototype",
        "the class within a task is that of the nearest prototype, or of the network's output",
        choices=_CLASSES,
    )
    models: Mapping[int, ClassModels] = field(default_factory=dict, repr=False, compare=False)

    def fitted(self, learner: Learner, data: Mapping[Any, Batches]) -> Self:
        """Return the score with prototypes and covariances of these tasks' classes.

        Args:
            learner: The learner, in evaluation mode without gradients.
            data: Training data by task id.

        Raises:
            ConfigError: A class has fewer than two rows, a covariance cannot be normalised, or
                features are negative under a root.
            ValueError: Features are not finite.
        """
        models = {}
        for task, batches in by_id(learner, data).items():
            parts = [(learner.features(x, task).flatten(1).double(), y) for x, y in batches]
            if not parts:
                raise ConfigError(f"the training data of task {task} is empty; give its batches")
            features = torch.cat([f for f, _ in parts])
            check_finite(features.sum(1)[None], [task], "sum of features")
            classes = learner.tasks[task].classes
            labels = torch.cat([y for _, y in parts])
            count = int(labels.max()) + 1 if classes is None else len(classes)
            models[task] = self.models_of(self._powered(features, task), labels, count, task)
        return replace(self, models={**self.models, **models})

    def models_of(self, features: Tensor, labels: Tensor, count: int, task: int = 0) -> ClassModels:
        """Return the models of a task's classes.

        Args:
            features: (rows, features), float64.
            labels: (rows,), classes counted from 0.
            count: Of the classes.
            task: Its id, for errors.
        """
        found = []
        for number in range(count):
            rows = features[labels == number]
            if len(rows) < 2:
                raise ConfigError(
                    f"class {number} of task {task} has {len(rows)} training rows; a covariance "
                    "needs 2 at least"
                )
            prototype = rows.mean(0)
            if self.tukey == "published":
                rows, prototype = rows.square(), prototype.square()
            covariance = self.shrunk(rows.T.cov())
            covariance = self.normalized(covariance, f"class {number} of task {task}")
            inverse = torch.linalg.pinv(covariance + _IN_EVERY_ENTRY)
            found.append((prototype, covariance, inverse))
        return ClassModels(*(torch.stack(parts) for parts in zip(*found, strict=True)))

    def shrunk(self, covariance: Tensor) -> Tensor:
        """Return a covariance (features, features) after all shrinkage."""
        one = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        for _ in range(self.shrinkage):
            others = covariance * (1 - one)
            count = (others != 0).sum().clamp(min=1)
            own = self.alpha1 * covariance.diagonal().mean()
            shared = self.alpha2 * others.sum() / count
            covariance = covariance + own * one + shared * (1 - one)
        return covariance

    def normalized(self, covariance: Tensor, what: str = "a class") -> Tensor:
        """Return a covariance (features, features) as a correlation, where that is asked for."""
        if not self.normalize_covariance:
            return covariance
        deviation = covariance.diagonal().sqrt()
        constant = int((deviation == 0).sum())
        if constant:
            raise ConfigError(
                f"{constant} of {len(deviation)} features are constant in {what}, so its "
                "covariance cannot be normalised; use shrinkage=1 or more, or "
                "normalize_covariance=False"
            )
        return covariance / (deviation[:, None] * deviation)

    def _powered(self, features: Tensor, task: int) -> Tensor:
        if self.tukey == "published":
            return features.square()
        if self.tukey == "none":
            return features
        if len(features) and float(features.min()) < 0:
            raise ConfigError(
                f"features of task {task} reach down to {float(features.min()):g} and have no "
                "root; use tukey='none'"
            )
        return features.sqrt()

    def distances(self, features: Tensor, task: int) -> Tensor:
        """Return squared distances (classes, batch) to a task's classes.

        Args:
            features: (batch, features) of the task's network, as they are.
            task: A task of :attr:`models`.
        """
        model = self.models[task]
        x, prototypes = self._powered(features.double(), task), model.prototypes
        if self.normalize_features:
            x, prototypes = F.normalize(x, dim=1), F.normalize(prototypes, dim=1)
        # Class by class: all at once would be as fast, and take the memory of all differences.
        return torch.stack(
            [
                ((x - prototype) @ inverse).mul_(x - prototype).sum(1)
                for prototype, inverse in zip(prototypes, model.inverses, strict=True)
            ]
        )

    def evidence(
        self, learner: Learner, x: Tensor, tasks: Sequence[int], batch_size: int
    ) -> Evidence:
        missing = [task for task in tasks if task not in self.models]
        if missing:
            raise ConfigError(
                f"the prototypes of tasks {missing} are not known; call fitted() with their "
                "training data"
            )
        best, places = [], []
        for task in tasks:
            distances = self.distances(learner.features(x, task, batch_size).flatten(1), task)
            nearest, place = distances.min(0)
            best.append(-nearest)
            places.append(place)
        scores = torch.stack(best)
        check_finite(scores, tasks, "distance")
        return Evidence(scores, torch.stack(places) if self.classes == "prototype" else None)

    def spread(self, scores: Tensor) -> Tensor:
        """Return minus the log of the distances."""
        return minus_log(scores)
