"""Tasks of Avalanche's benchmarks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError
from hypermask_fast.scenarios import Task, from_avalanche
from tests.support.avalanche_cases import CLASSES, Points, avalanche, make_benchmark


def read(task: Task, part: str) -> tuple[Tensor, Tensor]:
    """Inputs and global classes."""
    batches = list(task.evaluation_batches(part, 7))
    labels = torch.cat([y for _, y in batches])
    return torch.cat([x for x, _ in batches]), torch.tensor(task.classes)[labels]


def test_a_task_is_an_experience() -> None:
    benchmark = make_benchmark()
    scenario = from_avalanche(benchmark)
    assert [task.name for task in scenario] == ["task 0", "task 1"]
    assert sorted(c for task in scenario for c in task.classes) == list(range(CLASSES))
    for task, experience in zip(scenario, benchmark.train_stream, strict=True):
        assert set(task.classes) == set(experience.classes_in_this_experience)
        for part, points in (("train", Points()), ("test", Points(48, seed=1))):
            rows = [i for i, label in enumerate(points.targets) if label in task.classes]
            x, y = read(task, part)
            given = points.inputs[rows]
            # Avalanche has an order of its own.
            places, expected = x[:, 0].argsort(), given[:, 0].argsort()
            assert torch.equal(x[places], given[expected])
            assert y[places].tolist() == [points.targets[rows[i]] for i in expected]
        assert not len(task.validation)


def test_labels_from_zero_may_be_distinct_classes() -> None:
    benchmark = make_benchmark(class_ids_from_zero_in_each_exp=True)
    assert [task.classes for task in from_avalanche(benchmark)] == [(0, 1, 2)] * 2
    apart = from_avalanche(benchmark, distinct_classes=True)
    assert [task.classes for task in apart] == [(0, 1, 2), (3, 4, 5)]


def test_experiences_of_one_label_are_called_by_their_places() -> None:
    scenario = from_avalanche(make_benchmark(task_labels=False))
    assert [task.name for task in scenario] == ["experience 0", "experience 1"]


def test_validation_is_held_out_or_the_benchmarks_own() -> None:
    benchmark = make_benchmark()
    held = from_avalanche(benchmark, validation=0.25)[0]
    assert (len(held.train), len(held.validation)) == (36, 12)
    assert held.validation.labels.bincount().tolist() == [4, 4, 4]
    generators = avalanche("avalanche.benchmarks")
    made = generators.benchmark_with_validation_stream(benchmark, validation_size=9)
    own = from_avalanche(made)[1]
    assert (len(own.train), len(own.validation)) == (39, 9)
    assert len(from_avalanche(made, validation=0)[1].validation) == 0


def test_transforms_of_training_are_for_training_alone() -> None:
    transforms = {"train_transform": lambda x: x + 100, "eval_transform": lambda x: x - 100}
    task = from_avalanche(make_benchmark(**transforms), validation=6)[0]
    x, _ = task.stream(8).batch(0)
    assert float(x.min()) > 50
    for part in ("validation", "test"):
        assert float(read(task, part)[0].max()) < -50


def test_one_test_experience_serves_all_tasks() -> None:
    generators = avalanche("avalanche.benchmarks")
    benchmark = generators.ni_benchmark(Points(), Points(48, seed=1), n_experiences=3, seed=0)
    scenario = from_avalanche(benchmark)
    assert [len(task.test) for task in scenario] == [48] * 3
    assert sum(len(task.train) for task in scenario) == 96


def test_streams_that_do_not_fit_are_refused() -> None:
    class Benchmark:
        def __init__(self, streams: dict[str, Any]) -> None:
            self.streams = streams

    whole = make_benchmark().streams
    with pytest.raises(ConfigError, match="'test' has 3 experiences and 'train' has 2"):
        from_avalanche(Benchmark({"train": whole["train"], "test": [*whole["test"], 1]}))
    with pytest.raises(TypeError, match=r"pip install avalanche-lib\) with the streams"):
        from_avalanche(Benchmark({"train": whole["train"]}))
