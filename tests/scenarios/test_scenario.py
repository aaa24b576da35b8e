"""Tasks and sequences of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hypermask_fast.errors import ConfigError
from hypermask_fast.scenarios import Scenario, permuted, split
from tests.support.scenario_cases import make_dataset


@pytest.mark.parametrize("batch_size", [1, 7, 20, 1000])
def test_evaluation_batches_cover_a_split_in_order_without_augmentation(batch_size):
    dataset = make_dataset(shape=(1, 6, 6))
    task = split(dataset, 2, validation=9, crop=2, flip=True, mean=(0.2,), std=(0.5,))[1]
    for name in ("train", "validation", "test"):
        part = task.split(name)
        batches = list(task.evaluation_batches(name, batch_size))
        assert [len(x) for x, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
        x = torch.cat([x for x, _ in batches])
        scaled = part.source.images[part.index].numpy().astype(np.float32) / np.float32(255)
        assert np.array_equal(x, (scaled - np.float32(0.2)) / np.float32(0.5))
        assert torch.equal(torch.cat([y for _, y in batches]), part.labels)


def test_evaluation_batches_of_an_empty_split_and_refusals():
    task = split(make_dataset(), 2)[0]
    assert list(task.evaluation_batches("validation", 10)) == []
    with pytest.raises(ConfigError, match=r"no split 'valid'.*did you mean 'validation'"):
        task.evaluation_batches("valid", 10)
    with pytest.raises(ValueError, match="batch_size=0"):
        task.evaluation_batches("test", 0)


def test_describe_is_a_table():
    scenario = split(make_dataset(), [2, 4], class_order=[0, 1, 5, 2, 3, 4], validation=3)
    assert scenario.describe().splitlines() == [
        "split-made: 2 tasks, input 1 x 4 x 4, head 4",
        "task  name         global classes  local labels  train  val  test",
        "   0  made c0/c1   0-1             0-1              37    3    20",
        "   1  made c5..c4  5, 2-4          0-3              77    3    40",
    ]


def test_scenario_is_a_sequence():
    scenario = permuted(make_dataset(), 4)
    assert [task.name for task in scenario[1:3]] == ["made permutation 1", "made permutation 2"]
    assert isinstance(scenario[1:3], Scenario)
    assert scenario[-1] is scenario[3]
    end = scenario[len(scenario) :]
    assert (list(end), end.num_classes, end.input_shape) == ([], 0, (1, 4, 4))
    with pytest.raises(ConfigError, match="give at least one task"):
        Scenario("none", [])
    with pytest.raises(ConfigError, match="tasks of one shape"):
        Scenario("two", [scenario[0], *permuted(make_dataset(), 1, pad=1)])
