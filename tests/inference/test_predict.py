"""Predictions without task ids, against the same written plainly, sample by sample."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.errors import ConfigError
from hypermask_fast.inference import registry
from hypermask_fast.inference.base import Evidence, Score
from hypermask_fast.inference.calibration import calibrate
from hypermask_fast.inference.fecam import FeCAM
from hypermask_fast.inference.outputs import Energy, Entropy, Margin
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.hypermask.learner import HyperMask
from tests.support.hypermask_cases import mixed_net
from tests.support.inference_cases import (
    CLASSES,
    PLAIN_SCORES,
    Recorded,
    learned,
    plain_distance,
    plain_models,
)

OUTPUT_SCORES = ["entropy", "margin", "energy", "max_logit"]


@pytest.fixture
def learner() -> HyperMask:
    return learned()


@pytest.fixture
def x() -> Tensor:
    return 2 * torch.randn(23, 5).double()


def training_data(rows: int = 20) -> dict[int, list[tuple[Tensor, Tensor]]]:
    data = {}
    for task, classes in enumerate(CLASSES):
        labels = torch.arange(rows) % len(classes)
        data[task] = [(torch.randn(rows, 5).double() + labels[:, None], labels)]
    return data


@torch.no_grad()
def plain_prediction(
    learner: HyperMask, x: Tensor, name: str
) -> tuple[list[int], list[int], list[list[float]]]:
    """The published loop: each sample under each task, alone."""
    tasks, classes, scores = [], [], []
    for row in x:
        found = []
        for task in range(3):
            logits = learner(row[None], task)[0, : len(CLASSES[task])].double().numpy()
            found.append((PLAIN_SCORES[name](logits), int(logits.argmax())))
        best = max(range(3), key=lambda task: found[task][0])
        tasks.append(best)
        classes.append(CLASSES[best][found[best][1]])
        scores.append([score for score, _ in found])
    return tasks, classes, scores


@pytest.mark.parametrize("batch_size", [1, 10, 2000])
@pytest.mark.parametrize("name", OUTPUT_SCORES)
def test_each_row_is_as_if_alone(learner: HyperMask, x: Tensor, name: str, batch_size: int) -> None:
    tasks, classes, scores = plain_prediction(learner, x, name)
    found = learner.predict(x, name, batch_size=batch_size)
    assert found.tasks.tolist() == tasks
    assert found.classes.tolist() == classes
    assert found.competing == (0, 1, 2)
    np.testing.assert_allclose(found.scores.T, scores, rtol=1e-9, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [7, 2000])
def test_fecam_is_as_each_row_and_class_alone(
    learner: HyperMask, x: Tensor, batch_size: int
) -> None:
    data = training_data()
    score = FeCAM().fitted(learner, data)
    found = learner.predict(x, score, batch_size=batch_size)
    models = {}
    for task, classes in enumerate(CLASSES):
        ((inputs, labels),) = data[task]
        features = learner.features(inputs, task).numpy()
        for place, number in enumerate(classes):
            models[task, number] = plain_models(features[labels.numpy() == place])
    for row in range(len(x)):
        distances = {
            (task, number): plain_distance(learner.features(x[row : row + 1], task)[0].numpy(), *m)
            for (task, number), m in models.items()
        }
        task, number = min(distances, key=distances.__getitem__)
        assert (int(found.tasks[row]), int(found.classes[row])) == (task, number)
        for other in range(3):
            nearest = min(d for (t, _), d in distances.items() if t == other)
            assert float(-found.scores[other, row]) == pytest.approx(nearest, rel=1e-8)


@torch.no_grad()
def test_fecam_may_leave_the_class_to_the_network(learner: HyperMask, x: Tensor) -> None:
    score = FeCAM(classes="output").fitted(learner, training_data())
    found = learner.predict(x, score)
    for row, (task, number) in enumerate(zip(found.tasks.tolist(), found.classes, strict=True)):
        assert CLASSES[task][int(learner(x[row : row + 1], task).argmax())] == int(number)


def test_fecam_takes_roots_and_refuses_those_of_negative_features(learner: HyperMask) -> None:
    features = torch.rand(1, 30, 4).double()
    labels = torch.arange(30) % 2
    data = {0: [(torch.arange(30), labels)]}
    given = Recorded(torch.zeros(1, 30, 2), features)
    rooted = Recorded(torch.zeros(1, 30, 2), features.sqrt())
    found = FeCAM(tukey="root").fitted(given, data).models[0]
    expected = FeCAM().fitted(rooted, data).models[0]
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted)
    negative = Recorded(torch.zeros(1, 30, 2), features - 0.5)
    with pytest.raises(ValueError, match="have no root"):
        FeCAM(tukey="root").fitted(negative, data)


def test_only_learned_tasks_compete_or_those_that_are_given() -> None:
    logits = torch.zeros(4, 3, 2)
    logits[:, :, 0] = torch.tensor([1.0, 9.0, 3.0, 8.0])[:, None]
    learner = Recorded(logits, learned=[2, 0])
    rows = torch.arange(3)
    found = learner.predict(rows)
    assert found.competing == (0, 2)
    assert found.tasks.tolist() == [2, 2, 2]
    assert learner.predict(rows, tasks=[0, 1, 2]).tasks.tolist() == [1, 1, 1]
    nothing = Recorded(logits, learned=[])
    with pytest.raises(ValueError, match="no task was learned"):
        nothing.predict(rows)


def test_of_equal_scores_the_first_task_wins() -> None:
    learner = Recorded(torch.ones(3, 4, 2))
    for name in OUTPUT_SCORES:
        assert learner.predict(torch.arange(4), name).tasks.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", OUTPUT_SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_and_outputs_without_a_class_give_no_nan(
    name: str, dtype: torch.dtype
) -> None:
    rows = [[1e4, 0, 5], [-1e4, 0, 5], [0, 0, 0], [1e4, -1e4, 1e4], [300, 0, -300]]
    logits = torch.tensor([rows, rows], dtype=dtype)
    learner = Recorded(logits, classes=[(0, 1), (2, 3, 4)])
    found = learner.predict(torch.arange(5), name)
    assert found.scores.isfinite().all()
    assert set(found.classes[found.tasks == 0].tolist()) <= {0, 1}


def test_certain_tasks_are_ranked_beyond_float32() -> None:
    """The second class underflows in float32 at both gaps, so that both entropies would be 0."""
    logits = torch.tensor([[[110.0, 0.0]], [[120.0, 0.0]]])
    for name in OUTPUT_SCORES:
        assert Recorded(logits).predict(torch.arange(1), name).tasks.tolist() == [1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", OUTPUT_SCORES)
def test_outputs_that_are_not_finite_are_refused(name: str, value: float) -> None:
    logits = torch.zeros(3, 4, 2)
    logits[1, 2, 0] = value
    with pytest.raises(ValueError, match="task 1 is not finite in 1 of 4 rows"):
        Recorded(logits).predict(torch.arange(4), name)


@pytest.mark.parametrize("name", ["entropy", "margin"])
def test_a_task_of_one_class_would_always_win(name: str) -> None:
    learner = Recorded(torch.zeros(2, 4, 2), classes=[(0, 1), (2,)])
    with pytest.raises(ValueError, match="task 1 has one class"):
        learner.predict(torch.arange(4), name)
    assert learner.predict(torch.arange(4), "energy").tasks.tolist() == [0] * 4


def test_without_global_ids_classes_are_places_in_the_task() -> None:
    logits = torch.tensor([[[1.0, 0.0]], [[0.0, 9.0]]])
    for classes in (None, [(4, 5), None]):
        assert Recorded(logits, classes=classes).predict(torch.arange(1)).classes.tolist() == [1]
    assert Recorded(logits, classes=[(4, 5), (8, 6)]).predict(torch.arange(1)).classes[0] == 6


def test_an_empty_batch_has_an_empty_prediction(learner: HyperMask, x: Tensor) -> None:
    found = learner.predict(x[:0])
    assert found.tasks.shape == found.classes.shape == (0,)
    assert found.scores.shape == (3, 0)


def normed(bn: str) -> HyperMask:
    learner = learned(net=mixed_net(), bn=bn)
    learner.train()
    for module in learner.net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return learner


def test_a_prediction_leaves_mode_gradients_and_statistics(x: Tensor) -> None:
    learner = normed("per_task")
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    for training_mode in (False, True):
        found = learner.predict(x, training_mode=training_mode)
        assert not found.scores.requires_grad
        assert all(module.training for module in learner.modules())
        for name, value in learner.state_dict().items():
            assert torch.equal(value, before[name]), name


@torch.no_grad()
def test_with_statistics_of_the_batch_its_size_and_passes_matter(x: Tensor) -> None:
    """As published for HyperMask: the second pass groups rows by the task that was found."""
    learner = normed("batch").eval()
    parts = [learner.predict(rows) for rows in (x[:10], x[10:20], x[20:])]
    found = learner.predict(x, batch_size=10)
    torch.testing.assert_close(found.scores, torch.cat([part.scores for part in parts], 1))
    assert not torch.allclose(found.scores, learner.predict(x).scores)
    again = learner.predict(x, second_pass=True)
    assert torch.equal(again.tasks, learner.predict(x).tasks)
    for task in again.tasks.unique().tolist():
        rows = again.tasks == task
        local = learner(x[rows], task).argmax(1)
        assert again.classes[rows].tolist() == [CLASSES[task][place] for place in local]


class Plain(Learner):
    """One network with batch norm for all tasks."""


def test_training_mode_uses_the_statistics_of_the_batch(x: Tensor) -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    learner = Plain(net, 1)
    learner.add_task()
    learner.begin_task(0)
    learner.end_task()
    learner.eval()
    found = learner.predict(x, training_mode=True)
    hidden = net[0](x)
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + net[1].eps).sqrt()
    logs = net[2](hidden).log_softmax(1)
    torch.testing.assert_close(found.scores[0], (logs.exp() * logs).sum(1).detach())
    assert torch.equal(net[1].running_mean, torch.zeros(4).double())


class BlendGradient(Score):
    """One task for all rows of a batch: the lowest gradient of a blend's entropy (SupSup)."""

    def __init__(self, rows: int | None = None) -> None:
        self.rows = rows

    def evidence(
        self, learner: Learner, x: Tensor, tasks: Sequence[int], batch_size: int
    ) -> Evidence:
        found = []
        for batch in x.split(batch_size):
            alpha = torch.full((len(learner.tasks),), 1 / len(tasks), dtype=x.dtype)
            alpha.requires_grad_()
            with torch.enable_grad(), learner.blended(alpha) as net:
                logs = net(batch[: self.rows]).log_softmax(1)
                (grad,) = torch.autograd.grad(-(logs.exp() * logs).sum(1).mean(), alpha)
            found.append(-grad[list(tasks), None].double().expand(-1, len(batch)))
        return Evidence(torch.cat(found, 1), None)


@torch.no_grad()
def test_a_score_of_ones_own_may_be_of_whole_batches(learner: HyperMask, x: Tensor) -> None:
    registry.register("blend", f"{BlendGradient.__module__}:{BlendGradient.__name__}")
    sys.modules[BlendGradient.__module__] = sys.modules[__name__]
    found = learner.predict(x, "blend", rows=1, batch_size=10)
    assert (found.tasks[:10] == found.tasks[0]).all()
    for task, row, number in zip(found.tasks.tolist(), x, found.classes.tolist(), strict=True):
        assert number == CLASSES[task][int(learner(row[None], task).argmax())]
    with pytest.raises(ConfigError, match="registered already"):
        registry.register("blend", "elsewhere:Score")


REFUSED = [
    pytest.param({"score": "entrpy"}, ConfigError, "did you mean 'entropy'", id="name"),
    pytest.param({"score": 3}, TypeError, "score is 3", id="type"),
    pytest.param({"score": Entropy(), "temperature": 2.0}, ConfigError, "beside", id="beside"),
    pytest.param({"score": "fecam"}, ValueError, r"prototypes of tasks \[0, 1, 2\]", id="unfitted"),
    pytest.param({"tasks": [0, 3]}, ValueError, "task 3 was not added", id="unknown-task"),
    pytest.param({"tasks": [0, 0]}, ValueError, "each once", id="twice"),
    pytest.param({"tasks": []}, ValueError, "at least one", id="none"),
    pytest.param({"tasks": [0.0]}, TypeError, "give the id", id="float"),
    pytest.param({"batch_size": 0}, ConfigError, "batch_size=0", id="batch-size"),
]


@pytest.mark.parametrize(("options", "error", "words"), REFUSED)
def test_mistakes_are_one_sentence(
    learner: HyperMask, x: Tensor, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        learner.predict(x, **options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda: Entropy(0.0), "temperature=0.0", id="temperature"),
        pytest.param(lambda: Energy(float("nan")), "temperature=nan", id="nan"),
        pytest.param(lambda: FeCAM(shrinkage=-1), "shrinkage=-1", id="shrinkage"),
        pytest.param(lambda: FeCAM(tukey="rot"), "did you mean 'root'", id="tukey"),
    ],
)
def test_options_are_checked(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_fecam_refuses_what_has_no_covariance() -> None:
    features = torch.rand(1, 6, 3).double()
    features[..., 1] = 0
    learner = Recorded(torch.zeros(1, 6, 2), features)
    with pytest.raises(ValueError, match="class 1 of task 0 has 1 training rows"):
        FeCAM().fitted(learner, {0: [(torch.arange(6), torch.tensor([0, 0, 0, 0, 0, 1]))]})
    halves = {0: [(torch.arange(6), torch.tensor([0, 0, 0, 1, 1, 1]))]}
    with pytest.raises(ValueError, match="1 of 3 features are constant in class 0 of task 0"):
        FeCAM(shrinkage=0).fitted(learner, halves)
    with pytest.raises(ValueError, match="task 0 is empty"):
        FeCAM().fitted(learner, {0: []})


def test_a_calibration_is_of_one_score_and_its_tasks(learner: HyperMask, x: Tensor) -> None:
    calibration = calibrate(learner, Margin(), {task: [(x, x[:, 0].long())] for task in range(3)})
    with pytest.raises(ValueError, match="the score is Energy"):
        learner.predict(x, "energy", calibration=calibration)
    with pytest.raises(ValueError, match=r"tasks \[0, 1\] compete"):
        learner.predict(x, "margin", tasks=[0, 1], calibration=calibration)
