"""Scenarios from any data set: what goes where, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hypermask_fast.errors import ConfigError
from hypermask_fast.scenarios import ImageDataset, ImageSet, permuted, split
from tests.support.scenario_cases import make_dataset


def test_split_selects_relabels_and_holds_out_the_first():
    dataset = make_dataset()
    scenario = split(dataset, 2, class_order=[3, 1, 0, 2, 5, 4], validation=7, stratified=False)
    assert [task.classes for task in scenario] == [(3, 1), (0, 2), (5, 4)]
    assert scenario[0].class_names == ("c3", "c1")
    for task in scenario:
        labels = dataset.train.labels.numpy()
        places = np.flatnonzero(np.isin(labels, task.classes))
        assert task.validation.index.tolist() == places[:7].tolist()
        assert task.train.index.tolist() == places[7:].tolist()
        test_places = np.flatnonzero(np.isin(dataset.test.labels.numpy(), task.classes))
        assert task.test.index.tolist() == test_places.tolist()
        for part, source in ((task.train, dataset.train), (task.test, dataset.test)):
            back = torch.tensor(task.classes)[part.labels]
            assert torch.equal(back, source.labels[part.index])
            assert part.labels.dtype == torch.int64
            assert part.source.images.data_ptr() == source.images.data_ptr()


def test_split_holds_out_the_first_of_each_class():
    dataset = make_dataset()
    scenario = split(dataset, 3, validation=4, validation_per_class=True)
    for task in scenario:
        expected = [
            place
            for c in task.classes
            for place in np.flatnonzero(dataset.train.labels.numpy() == c)[:4].tolist()
        ]
        assert task.validation.index.tolist() == sorted(expected)
        assert len(task.train) + len(task.validation) == 60


def sorted_dataset() -> ImageDataset:
    labels = torch.tensor([0] * 90 + [1] * 30 + [2] * 20 + [3] * 10)
    return ImageDataset(
        "sorted",
        ImageSet(torch.zeros(150, 1, 4, 4, dtype=torch.uint8), labels),
        ImageSet(torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.arange(4)),
        tuple("abcd"),
    )


@pytest.mark.parametrize(("validation", "shares"), [(50, [30, 10, 7, 3]), (2, [1, 1, 0, 0])])
def test_validation_data_has_every_class_in_proportion(validation, shares):
    """Exact shares of 50 of 150: 30, 10, 6.67, 3.33; of 2: 1.2, 0.4, 0.27, 0.13."""
    dataset = sorted_dataset()
    for task in (
        split(dataset, validation=validation)[0],
        permuted(dataset, 1, validation=validation)[0],
    ):
        assert task.validation.labels.bincount(minlength=4).tolist() == shares
        held, kept = set(task.validation.index.tolist()), set(task.train.index.tolist())
        assert held | kept == set(range(150))
        assert not held & kept
        first = [torch.nonzero(dataset.train.labels == c)[:n, 0] for c, n in enumerate(shares)]
        assert held == set(torch.cat(first).tolist())


def test_a_class_left_without_training_images_is_refused():
    with pytest.raises(ConfigError, match="no training examples of a; hold out fewer"):
        split(sorted_dataset(), 2, validation=90, stratified=False)
    source = ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([2, 3]))
    with pytest.raises(ConfigError, match="task 'sorted a/b' has no training examples of a, b"):
        split(replace(sorted_dataset(), train=source), 2)
    with pytest.raises(ConfigError, match="task 'sorted a/b' has no test examples"):
        split(replace(sorted_dataset(), test=source), 2)


def test_split_sizes_and_number_of_tasks():
    dataset = make_dataset()
    scenario = split(dataset, [3, 1, 2], name="mine")
    assert [task.classes for task in scenario] == [(0, 1, 2), (3,), (4, 5)]
    assert (scenario.name, scenario.num_classes, len(scenario)) == ("mine", 3, 3)
    assert [task.classes for task in split(dataset, 2, tasks=2)] == [(0, 1), (2, 3)]
    assert [task.num_classes for task in split(dataset)] == [6]
    assert len(split(dataset, 2)[0].validation) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"classes_per_task": 4}, "must divide the number of classes, 6", id="divide"),
        pytest.param({"classes_per_task": 0}, "classes_per_task is 0", id="zero"),
        pytest.param({"classes_per_task": [3, 2]}, "add up to", id="sum"),
        pytest.param({"classes_per_task": [6, 0]}, "1 or more", id="empty-task"),
        pytest.param({"class_order": [0, 0, 1]}, r"class_order has \[0, 0\]", id="twice"),
        pytest.param({"class_order": [0, 6]}, r"class_order has \[6\]", id="unknown-class"),
        pytest.param({"class_order": []}, "class_order has no class", id="no-class"),
        pytest.param({"classes_per_task": 2, "tasks": 4}, "tasks is 4; it must be 1 to 3", id="t4"),
        pytest.param({"classes_per_task": 2, "tasks": 0}, "tasks is 0; it must be 1 to 3", id="t0"),
        pytest.param({"validation": 120}, "validation is 120; it must be 0 to 119", id="val-all"),
        pytest.param({"validation": -1}, "validation is -1", id="val-negative"),
        pytest.param(
            {"validation": 20, "validation_per_class": True},
            "0 to 19.*20 training examples of a class",
            id="val-class",
        ),
    ],
)
def test_split_refuses_settings(options, says):
    with pytest.raises(ConfigError, match=says):
        split(make_dataset(), **options)


def test_permuted_tasks_permute_the_padded_pixels():
    dataset = make_dataset(shape=(2, 4, 3))
    scenario = permuted(dataset, 3, pad=1, validation=10)
    assert scenario.input_shape == (2, 6, 5)
    assert [task.classes for task in scenario] == [
        tuple(range(0, 6)),
        tuple(range(6, 12)),
        tuple(range(12, 18)),
    ]
    padded = np.pad(dataset.test.images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for task in scenario:
        order = task.eval_preprocess.permutation.numpy()
        assert sorted(order) == list(range(60))
        x, y = next(task.evaluation_batches("test", 60))
        expected = padded.reshape(60, -1)[:, order].reshape(60, 2, 6, 5).astype(np.float32)
        assert np.array_equal(x.numpy(), expected / np.float32(255))
        assert torch.equal(y, dataset.test.labels)
        known = {
            row.numpy().tobytes(): int(label)
            for x, y in task.evaluation_batches("train")
            for row, label in zip(x, y, strict=True)
        }
        assert len(known) == 110
        batch, labels = task.stream(110).batch(0)
        drawn = {row.numpy().tobytes(): int(c) for row, c in zip(batch, labels, strict=True)}
        assert drawn == known


def test_permuted_tasks_share_everything_but_the_permutation():
    dataset = make_dataset()
    scenario = permuted(dataset, 100)
    assert {task.train.source.images.data_ptr() for task in scenario} == {
        dataset.train.images.data_ptr()
    }
    assert len({id(task.train) for task in scenario}) == 1
    assert len({tuple(task.train_preprocess.permutation.tolist()) for task in scenario}) == 100


def test_permutations_depend_on_the_seed_and_not_on_the_number_of_tasks():
    def orders(**options):
        return [task.train_preprocess.permutation for task in permuted(make_dataset(), **options)]

    base = orders(tasks=3)
    assert all(torch.equal(a, b) for a, b in zip(base, orders(tasks=5), strict=False))
    assert not any(torch.equal(a, b) for a, b in zip(base, orders(tasks=3, seed=1), strict=True))
    identity = orders(tasks=3, identity_first=True)
    assert identity[0] is None
    assert all(torch.equal(a, b) for a, b in zip(base[1:], identity[1:], strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tasks": 0}, "tasks is 0; it must be 1 or more"),
        ({"tasks": 2, "validation": 120}, "validation is 120"),
        ({"tasks": 2, "pad": -1}, "pad=-1"),
    ],
    ids=["tasks", "validation", "pad"],
)
def test_permuted_refuses_settings(options, says):
    with pytest.raises(ConfigError, match=says):
        permuted(make_dataset(), **options)
