"""Tasks of tensors, Datasets and DataLoaders of one's own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from hypermask_fast.errors import ConfigError, DataError
from hypermask_fast.scenarios import from_data, make_task

LABELS = torch.tensor([7, 3, 3, 9, 7, 3, 9, 3, 7, 3])
INPUTS = torch.arange(10.0)[:, None].repeat(1, 4)


class Noisy(Dataset[tuple[Tensor, int]]):
    """Items whose inputs have noise of all three generators."""

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        noise = torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])  # noqa: NPY002
        return torch.cat([noise, INPUTS[place, :1]]), int(LABELS[place])


class Listed(Noisy):
    """One that lists its labels, which its items need not have."""

    def __init__(self, targets: Any, target_transform: Callable[[int], int] | None = None) -> None:
        self.targets = targets
        self.target_transform = target_transform


def rows(task: Any, split: str) -> list[tuple[float, int]]:
    """The examples of a split, each by its last number, with the global label."""
    return [
        (x[-1].item(), task.classes[y])
        for inputs, labels in task.evaluation_batches(split, 3)
        for x, y in zip(inputs, labels, strict=True)
    ]


def expected(places: Any) -> list[tuple[float, int]]:
    return [(float(place), int(LABELS[place])) for place in places]


@pytest.mark.parametrize("data", [(INPUTS, LABELS), TensorDataset(INPUTS, LABELS), Noisy()])
def test_classes_are_the_labels_of_the_training_data_in_order(data: Any) -> None:
    task = make_task("own", data, data)
    assert task.classes == (3, 7, 9)
    assert task.input_shape == (4,)
    assert rows(task, "train") == rows(task, "test") == expected(range(10))
    assert len(task.validation) == 0


@pytest.mark.parametrize(
    "inputs",
    [
        torch.randint(0, 50, (10, 6)),
        torch.rand(10, 3, 8, 8, dtype=torch.float64),
        torch.randint(0, 256, (10, 1, 2, 2)).to(torch.uint8),
        np.random.default_rng(0).random((10, 5)),
    ],
)
def test_a_network_gets_inputs_as_they_are(inputs: Any) -> None:
    task = make_task("own", (inputs, LABELS), (inputs, LABELS.numpy()))
    ((seen, labels),) = task.evaluation_batches("train")
    torch.testing.assert_close(seen, torch.as_tensor(inputs), rtol=0, atol=0)
    assert [task.classes[y] for y in labels] == LABELS.tolist()


@pytest.mark.parametrize(("validation", "held"), [(5, 5), (0.5, 5), (0.0, 0), (0.31, 3)])
def test_validation_is_held_out_of_each_class_in_proportion(validation: float, held: int) -> None:
    task = make_task("own", (INPUTS, LABELS), (INPUTS, LABELS), validation=validation)
    kept, out = rows(task, "train"), rows(task, "validation")
    assert len(out) == held
    assert sorted(kept + out) == expected(range(10))
    if held == 5:
        counts = [sum(label == c for _, label in out) for c in (3, 7, 9)]
        assert sum(counts) == 5
        assert all(abs(n - total / 2) < 1 for n, total in zip(counts, (5, 3, 2), strict=True))


def test_validation_data_of_its_own() -> None:
    held = Subset(Noisy(), [2, 3])
    task = make_task("own", (INPUTS, LABELS), (INPUTS, LABELS), validation=held)
    assert rows(task, "validation") == expected([2, 3])


def test_parts_of_datasets_have_their_labels() -> None:
    data = ConcatDataset(
        [Subset(Listed(LABELS.tolist()), [9, 3, 0]), TensorDataset(INPUTS, LABELS)]
    )
    task = make_task("own", data, data)
    assert rows(task, "train") == expected([9, 3, 0, *range(10)])


def test_a_loader_gives_its_dataset_its_collate_function_and_its_workers() -> None:
    def doubled(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        return torch.stack([2 * x for x, _ in items]), torch.tensor([y for _, y in items])

    loader = DataLoader(Noisy(), batch_size=7, shuffle=True, collate_fn=doubled)
    task = make_task("own", loader, loader)
    assert rows(task, "train") == [(2 * x, y) for x, y in expected(range(10))]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_a_function_of_the_step(workers: int) -> None:
    task = make_task("own", Noisy(), Noisy(), workers=workers)
    plain = make_task("own", (INPUTS, LABELS), (INPUTS, LABELS)).stream(4, seed=5, task_id=2)
    stream = task.stream(4, seed=5, task_id=2)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    seen = [stream.batch(step) for step in range(8)]
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[1:]  # noqa: NPY002
    for step, (inputs, labels) in enumerate(seen):
        x, y = plain.batch(step)
        assert torch.equal(inputs[:, -1], x[:, -1])
        assert torch.equal(labels, y)
    noise = torch.cat([inputs[:, :3].flatten() for inputs, _ in seen])
    assert len(noise.unique()) == len(noise)
    again = make_task("own", Noisy(), Noisy()).stream(4, seed=5, task_id=2)
    for step in (6, 7, 3, 4, 3):
        inputs, labels = again.batch(step)
        assert torch.equal(inputs, seen[step][0])
        assert torch.equal(labels, seen[step][1])


def test_evaluation_draws_the_same_each_time() -> None:
    task = make_task("own", Noisy(), Noisy())
    first, second = (torch.cat([x for x, _ in task.evaluation_batches("test", 3)]) for _ in "ab")
    assert torch.equal(first, second)


def test_labels_that_items_do_not_have_are_refused() -> None:
    wrong = LABELS.clone()
    wrong[4] = 3
    task = make_task("own", Listed(wrong), Noisy())
    with pytest.raises(DataError, match=r"item 4 has the label 7 in Listed, and 3 was expected"):
        list(task.evaluation_batches("train"))
    with pytest.raises(DataError, match="item 4 has the label 7"):
        task.stream(10).batch(0)


def test_a_transform_of_labels_makes_items_be_read() -> None:
    task = make_task("own", Listed([0] * 10, target_transform=int), Noisy())
    assert task.classes == (3, 7, 9)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


class Unlabelled(Noisy):
    def __getitem__(self, place: int) -> Any:
        return INPUTS[place]


class Worded(Noisy):
    def __getitem__(self, place: int) -> Any:
        return INPUTS[place], "cat"


_PAIR = (INPUTS, LABELS)


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (Endless(), TypeError, "dataset is a Endless, which has no length"),
        (Unlabelled(), DataError, "item 0 of train of task 'own' is .*make it"),
        (Worded(), DataError, "label 'cat'; give an integer"),
        ((INPUTS, LABELS + 0.5), DataError, "labels of train of task 'own' are torch.float32"),
        ((INPUTS, LABELS[:, None]), DataError, r"\(10, 1\); give integers \(n,\)"),
        ((INPUTS, LABELS[:4]), ValueError, r"\(4,\); give torch.int64 \(10,\)"),
        ((INPUTS[:0], LABELS[:0]), ConfigError, "no training examples"),
        (TensorDataset(INPUTS), TypeError, "a TensorDataset of 1 tensors"),
        (INPUTS, TypeError, r"give \(inputs, labels\), a Dataset or a DataLoader"),
        ((INPUTS, None), TypeError, "has None; give tensors or arrays"),
        (
            DataLoader(Noisy(), sampler=WeightedRandomSampler([1.0] * 10, 10)),
            TypeError,
            "draws by a WeightedRandomSampler",
        ),
    ],
)
def test_other_data_are_refused(data: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make_task("own", data, _PAIR)


def test_a_batch_sampler_is_refused() -> None:
    sampler = BatchSampler(WeightedRandomSampler([1.0] * 10, 10), 2, drop_last=False)
    with pytest.raises(TypeError, match="draws by a"):
        make_task("own", DataLoader(Noisy(), batch_sampler=sampler), _PAIR)


def test_test_labels_are_among_the_classes() -> None:
    with pytest.raises(ConfigError, match=r"test data of task 'own' have the labels \[1, 4\]"):
        make_task("own", _PAIR, (INPUTS[:3], torch.tensor([4, 3, 1])))


@pytest.mark.parametrize("validation", [1.0, -0.1, float("nan"), -1, 10, 99])
def test_more_than_there_are_cannot_be_held_out(validation: float) -> None:
    with pytest.raises(ConfigError, match="validation"):
        make_task("own", _PAIR, _PAIR, validation=validation)


def test_a_scenario_of_own_data() -> None:
    scenario = from_data({"a": (_PAIR, _PAIR), "b": (Noisy(), Noisy())}, validation=3)
    assert [task.name for task in scenario] == ["a", "b"]
    assert scenario.input_shape == (4,)
    assert [len(task.validation) for task in scenario] == [3, 3]
    with pytest.raises(TypeError, match=r"task 'a' is .*give \(train, test\)"):
        from_data({"a": INPUTS})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="give a dict"):
        from_data(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"train of task 'task 0' is .*give \(inputs, labels\)"):
        from_data([_PAIR])  # type: ignore[list-item]


def test_a_list_of_tensors_and_datasets_is_a_scenario() -> None:
    scenario = from_data([(_PAIR, _PAIR), (Noisy(), Noisy())])
    assert [task.name for task in scenario] == ["task 0", "task 1"]
    named = from_data({"task 0": (_PAIR, _PAIR), "task 1": (Noisy(), Noisy())})
    assert scenario.describe() == named.describe()


def test_labels_of_several_tasks_may_be_distinct_classes() -> None:
    other = (INPUTS, LABELS // 5)
    same = from_data({"a": (_PAIR, _PAIR), "b": (other, other)})
    apart = from_data({"a": (_PAIR, _PAIR), "b": (other, other)}, distinct_classes=True)
    count = same[0].num_classes
    assert [task.classes for task in apart] == [tuple(range(count)), (count, count + 1)]
    for one, two in zip(same, apart, strict=True):
        assert torch.equal(one.train.labels, two.train.labels)
        assert one.class_names == two.class_names
