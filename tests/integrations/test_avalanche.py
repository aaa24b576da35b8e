"""A learner inside Avalanche learns what it learns outside of it."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hypermask_fast as hmf
from hypermask_fast.errors import ConfigError
from hypermask_fast.methods.base import Learner
from hypermask_fast.scenarios import from_avalanche
from tests.support.avalanche_cases import CLASSES, avalanche, make_benchmark

METHODS = {
    "hypermask": lambda net: hmf.HyperMask(net, embedding_dim=8, hidden=(16,), beta=0.1),
    # Two optimizers, one after the other; and two phases.
    "hnet": lambda net: hmf.HNET(net, embedding_dim=8, hidden=(16,), beta=0.1),
    "exssnet": lambda net: hmf.ExSSNeT(net, density=0.5),
}


def make_learner(method: str = "hypermask") -> Learner:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(CLASSES, 32), nn.ReLU(), nn.Linear(32, 3))
    made: Learner = METHODS[method](net)
    return made


def strategy(learner: Learner, **options: Any) -> Any:
    avalanche()
    from hypermask_fast.integrations.avalanche import LearnerStrategy

    options = {"lr": 1e-2, "train_mb_size": 16, "train_epochs": 15, "evaluator": None} | options
    return LearnerStrategy(learner=learner, **options)


def accuracies(made: Any, benchmark: Any) -> list[float]:
    """By Avalanche's own metric, in percent."""
    metrics = avalanche("avalanche.evaluation.metrics")
    plugins = avalanche("avalanche.training.plugins")
    plugin = plugins.EvaluationPlugin(metrics.accuracy_metrics(experience=True), loggers=[])
    made.plugins.insert(0, plugin)
    made.eval(benchmark.test_stream)
    made.plugins.remove(plugin)
    return [100 * value for value in plugin.get_last_metrics().values()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("from_zero", [True, False])
def test_training_is_the_trainers_bit_by_bit(method: str, from_zero: bool) -> None:
    benchmark = make_benchmark(class_ids_from_zero_in_each_exp=from_zero)
    made = strategy(make_learner(method), seed=7)
    made.train(benchmark.train_stream)
    learner = make_learner(method)
    trainer = hmf.Trainer(learner, lr=1e-2, batch_size=16, epochs=15, seed=7, progress=False)
    for task in from_avalanche(benchmark):
        trainer.fit(task)
    assert made.learner.learned == learner.learned == (0, 1)
    for name, value in learner.state_dict().items():
        assert torch.equal(made.learner.state_dict()[name], value), name
    assert accuracies(made, benchmark) == pytest.approx(trainer.accuracy[-1].tolist())
    assert trainer.accuracy[-1].min() > 90


@pytest.mark.parametrize("method", METHODS)
def test_avalanches_own_order_learns_as_well(method: str) -> None:
    benchmark = make_benchmark()
    made = strategy(make_learner(method))
    torch.manual_seed(1)
    results = []
    for experience in benchmark.train_stream:
        made.train(experience)
        results.append(accuracies(made, benchmark))
    # Row by row: after the first task, and after both.
    assert results[0][0] > 90
    assert min(results[1]) > 90
    assert [record.name for record in made.learner.tasks] == ["task 0", "task 1"]


def test_metrics_and_loggers_fill() -> None:
    metrics = avalanche("avalanche.evaluation.metrics")
    plugins = avalanche("avalanche.training.plugins")
    logging = avalanche("avalanche.logging")
    text = io.StringIO()
    evaluator = plugins.EvaluationPlugin(
        metrics.accuracy_metrics(minibatch=True, epoch=True, experience=True, stream=True),
        metrics.loss_metrics(epoch=True, experience=True),
        metrics.forgetting_metrics(experience=True),
        metrics.confusion_matrix_metrics(num_classes=CLASSES, stream=True, save_image=False),
        loggers=[logging.TextLogger(text)],
    )
    benchmark = make_benchmark()
    made = strategy(make_learner(), evaluator=evaluator, eval_every=5)
    made.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
    made.eval(benchmark.test_stream)
    last = evaluator.get_last_metrics()
    assert last["Top1_Acc_Stream/eval_phase/test_stream/Task001"] > 0.9
    # The losses of training have the method's own terms; the last is that of a batch.
    assert np.isfinite(last["Loss_Epoch/train_phase/train_stream/Task001"])
    matrix = last["ConfusionMatrix_Stream/eval_phase/test_stream"]
    assert matrix.sum() == 48
    assert matrix.diagonal().sum() > 0.9 * 48
    assert "Top1_Acc_Exp/eval_phase/test_stream/Task001/Exp001" in text.getvalue()


def test_a_row_is_answered_by_the_task_of_its_label() -> None:
    benchmark = make_benchmark()
    made = strategy(make_learner(), train_epochs=1)
    made.train(benchmark.train_stream)
    learner = made.learner.eval()
    x = torch.randn(5, CLASSES)
    made.mbatch = [x, torch.zeros(5), torch.tensor([1, 0, 1, 1, 0])]
    out = made.forward()
    assert out.shape == (5, CLASSES)
    for row, task in enumerate([1, 0, 1, 1, 0]):
        classes = list(learner.tasks[task].classes)
        others = sorted(set(range(CLASSES)) - set(classes))
        torch.testing.assert_close(out[row, classes], learner(x[row : row + 1], task)[0, :3])
        assert bool((out[row, others] == -torch.inf).all())


def test_early_stopping_ends_the_task() -> None:
    core = avalanche("avalanche.core")

    class Stop(core.SupervisedPlugin):
        def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            if strategy.clock.train_exp_iterations == 2:
                strategy.stop_training()

    made = strategy(make_learner("exssnet"), plugins=[Stop()])
    made.train(make_benchmark().train_stream)
    assert (made.learner.current, made.learner.learned) == (None, (0, 1))


def test_benchmarks_without_labels_are_refused() -> None:
    made = strategy(make_learner(), train_epochs=1)
    with pytest.raises(ConfigError, match=r"task label 0 has the classes .*task_labels=True"):
        made.train(make_benchmark(task_labels=False).train_stream)
    assert made.learner.learned == (0,)
    generators = avalanche("avalanche.benchmarks")
    dataset = make_benchmark().train_stream[0].dataset
    from avalanche.benchmarks.utils import as_classification_dataset

    plain = as_classification_dataset(dataset)
    benchmark = generators.benchmark_from_datasets(train=[plain], test=[plain])
    with pytest.raises(ConfigError, match="has no task label; make the benchmark with"):
        made.train(benchmark.streams["train"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": "plateau"}, "schedule='plateau' looks at validation data"),
        ({"lr": -1}, "lr=-1"),
        ({"train_epochs": 0}, "train_epochs=0"),
        ({"seed": -1}, "seed=-1"),
        ({"optimizer": "adan"}, "optimizer='adan' is unknown"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"{says}.*; "):
        strategy(make_learner(), **options)


def test_a_plugin_that_looks_into_a_step_is_refused() -> None:
    plugins = avalanche("avalanche.training.plugins")
    with pytest.raises(ConfigError, match=r"EWCPlugin.* has before_backward, and .* one call; "):
        strategy(make_learner(), plugins=[plugins.EWCPlugin(0.1)])


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "hypermask_fast.integrations.avalanche"
    monkeypatch.delitem(sys.modules, name, raising=False)
    for missing in ("avalanche", "avalanche.training.plugins.evaluation"):
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match="install it with pip install avalanche-lib"):
        importlib.import_module(name)
