"""Tasks, scenarios, their builders and the published presets."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hypermask_fast.errors import ConfigError
from hypermask_fast.scenarios import (
    SCENARIO_NAMES,
    ImageDataset,
    ImageSet,
    Preprocess,
    Scenario,
    Split,
    make_scenario,
    moving,
    permuted,
    split,
    split_cifar100,
    split_cifar100_fecam,
)
from hypermask_fast.scenarios import published as presets

# The first block of the class order published for HyperMask with FeCAM.
FECAM_FIRST = {87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10, 72, 49, 78, 61, 14, 8, 86}


def make_dataset(n=120, classes=6, shape=(1, 4, 4), name="made") -> ImageDataset:
    sets = [
        ImageSet(
            torch.randint(0, 256, (count, *shape)).to(torch.uint8),
            torch.arange(count)[torch.randperm(count)] % classes,
        )
        for count in (n, n // 2)
    ]
    return ImageDataset(name, *sets, tuple(f"c{i}" for i in range(classes)))


@pytest.fixture
def published(monkeypatch):
    """Stand-ins for the data sets that are not here: small, and of the same shapes."""
    for name, classes, n, shape in (
        ("mnist", 10, 6000, (1, 28, 28)),
        ("fashion_mnist", 10, 6000, (1, 28, 28)),
        ("cifar100", 100, 6000, (3, 32, 32)),
    ):
        images = ImageSet(torch.zeros(n, *shape, dtype=torch.uint8), torch.arange(n) % classes)
        dataset = ImageDataset(
            name.replace("_", "-"), images, images, tuple(map(str, range(classes)))
        )
        monkeypatch.setattr(presets, f"load_{name}", lambda root, dataset=dataset: dataset)


def test_split_selects_relabels_and_holds_out_the_first():
    dataset = make_dataset()
    scenario = split(dataset, 2, class_order=[3, 1, 0, 2, 5, 4], validation=7)
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
            assert part.images.data_ptr() == source.images.data_ptr()


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
            "0 to 19.*20 training images of a class",
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
    assert {task.train.images.data_ptr() for task in scenario} == {dataset.train.images.data_ptr()}
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
        ({"tasks": 2, "pad": -1}, "pad is -1"),
    ],
    ids=["tasks", "validation", "pad"],
)
def test_permuted_refuses_settings(options, says):
    with pytest.raises(ConfigError, match=says):
        permuted(make_dataset(), **options)


@pytest.mark.parametrize("batch_size", [1, 7, 20, 1000])
def test_evaluation_batches_cover_a_split_in_order_without_augmentation(batch_size):
    dataset = make_dataset(shape=(1, 6, 6))
    task = split(dataset, 2, validation=9, crop=2, flip=True, mean=(0.2,), std=(0.5,))[1]
    for name in ("train", "validation", "test"):
        part = task.split(name)
        batches = list(task.evaluation_batches(name, batch_size))
        assert [len(x) for x, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
        x = torch.cat([x for x, _ in batches])
        scaled = part.images[part.index].numpy().astype(np.float32) / np.float32(255)
        assert np.array_equal(x, (scaled - np.float32(0.2)) / np.float32(0.5))
        assert torch.equal(torch.cat([y for _, y in batches]), part.labels)


def test_evaluation_batches_of_an_empty_split_and_refusals():
    task = split(make_dataset(), 2)[0]
    assert list(task.evaluation_batches("validation", 10)) == []
    with pytest.raises(ConfigError, match=r"no split 'valid'.*did you mean 'validation'"):
        task.evaluation_batches("valid", 10)
    with pytest.raises(ValueError, match="batch_size is 0"):
        task.evaluation_batches("test", 0)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda dataset: permuted(dataset, 4, validation=5), id="permuted"),
        pytest.param(lambda dataset: split(dataset, 2, validation=5, crop=1), id="split"),
    ],
)
def test_to_moves_shared_images_once(build):
    scenario = build(make_dataset())
    moved = scenario.to("meta")
    assert [task.device.type for task in moved] == ["meta"] * len(scenario)
    assert len({id(task.train.source) for task in moved}) == 1
    assert moved[0].train.source is moved[0].validation.source
    assert moved[0].train_preprocess.mean is None
    # A task that is moved alone finds the images that the others brought.
    assert scenario[1].to("meta").train.source is moved[0].train.source
    for task in moved:
        for part in (task.train, task.validation, task.test):
            assert {part.index.device.type, part.labels.device.type} == {"meta"}
    assert scenario[0].to("cpu").train is scenario[0].train


def test_copies_are_freed_with_their_last_user():
    scenario = permuted(make_dataset(), 2)
    source = scenario[0].train.source
    moved = scenario.to("meta")
    assert len(moving._copies[source]) == 1
    del moved
    gc.collect()
    assert len(moving._copies[source]) == 0


def test_preprocess_moves_its_tensors():
    preprocess = Preprocess(
        pad=1, crop=2, flip=True, permutation=torch.arange(4), mean=(0.5,), std=(0.5,)
    )
    moved = preprocess.to("meta")
    assert {t.device.type for t in (moved.permutation, moved.mean, moved.std)} == {"meta"}
    assert (moved.pad, moved.crop, moved.flip) == (1, 2, True)
    assert preprocess.mean.device.type == "cpu"


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
    with pytest.raises(ConfigError, match="give at least one task"):
        Scenario("none", [])
    with pytest.raises(ConfigError, match="tasks of one shape"):
        Scenario("two", [scenario[0], *permuted(make_dataset(), 1, pad=1)])


def test_split_checks_its_tensors():
    source = make_dataset().train
    with pytest.raises(ValueError, match="both must be"):
        Split(source, torch.arange(3), torch.arange(4))


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("name", "tasks", "shape", "classes", "counts", "train", "evaluation"),
    [
        pytest.param(
            "split-digits", 5, (1, 8, 8), [(0, 1), (2, 3)], (249, 40, 71),
            "pad=0, permuted=False, crop=0, flip=False, mean=None, std=None", None,
            id="split-digits",
        ),
        pytest.param(
            "permuted-digits", 5, (1, 8, 8), [range(10), range(10, 20)], (1242, 200, 355),
            "pad=0, permuted=True, crop=0, flip=False, mean=None, std=None", None,
            id="permuted-digits",
        ),
        pytest.param(
            "split-mnist", 5, (1, 28, 28), [(0, 1), (2, 3)], (200, 1000, 1200),
            "pad=0, permuted=False, crop=4, flip=False, mean=[0.1307], std=[0.3081]",
            "pad=0, permuted=False, crop=0, flip=False, mean=[0.1307], std=[0.3081]",
            id="split-mnist",
        ),
        pytest.param(
            "permuted-mnist", 10, (1, 32, 32), [range(10), range(10, 20)], (1000, 5000, 6000),
            "pad=2, permuted=True, crop=0, flip=False, mean=None, std=None", None,
            id="permuted-mnist",
        ),
        pytest.param(
            "split-fashion-mnist", 5, (1, 28, 28), [(0, 1), (2, 3)], (200, 1000, 1200),
            "pad=0, permuted=False, crop=4, flip=False, mean=[0.1307], std=[0.3081]",
            "pad=0, permuted=False, crop=0, flip=False, mean=[0.1307], std=[0.3081]",
            id="split-fashion-mnist",
        ),
        pytest.param(
            "permuted-fashion-mnist", 10, (1, 32, 32), [range(10)], (1000, 5000, 6000),
            "pad=2, permuted=True, crop=0, flip=False, mean=None, std=None", None,
            id="permuted-fashion-mnist",
        ),
        pytest.param(
            "split-cifar100", 10, (3, 32, 32), [range(10), range(10, 20)], (100, 500, 600),
            "pad=0, permuted=False, crop=4, flip=True, mean=[0.485, 0.456, 0.406], "
            "std=[0.229, 0.224, 0.225]",
            "pad=0, permuted=False, crop=0, flip=False, mean=[0.485, 0.456, 0.406], "
            "std=[0.229, 0.224, 0.225]",
            id="split-cifar100",
        ),
        pytest.param(
            "split-cifar100-fecam", 5, (3, 32, 32), [sorted(FECAM_FIRST)], (200, 1000, 1200),
            "pad=0, permuted=False, crop=4, flip=True, mean=[0.5071, 0.4867, 0.4408], "
            "std=[0.2675, 0.2565, 0.2761]",
            "pad=0, permuted=False, crop=0, flip=False, mean=[0.5071, 0.4867, 0.4408], "
            "std=[0.2675, 0.2565, 0.2761]",
            id="split-cifar100-fecam",
        ),
    ],
)  # fmt: skip
def test_presets_follow_the_published_protocols(
    name, tasks, shape, classes, counts, train, evaluation
):
    scenario = make_scenario(name, "unused")
    assert scenario.name == name
    assert len(scenario) == tasks
    assert scenario.input_shape == shape
    for task, expected in zip(scenario, classes, strict=False):
        assert task.classes == tuple(expected)
    first = scenario[0]
    assert (len(first.train), len(first.validation), len(first.test)) == counts
    assert repr(first.train_preprocess) == f"Preprocess({train})"
    assert repr(first.eval_preprocess) == f"Preprocess({evaluation or train})"
    assert scenario.num_classes == len(first.classes)
    x, y = first.stream(8).batch(0)
    assert x.shape == (8, *shape)
    assert int(y.max()) < scenario.num_classes


@pytest.mark.usefixtures("published")
def test_fecam_tasks_use_every_class_once():
    scenario = split_cifar100_fecam("unused")
    assert sorted(c for task in scenario for c in task.classes) == list(range(100))
    assert set(scenario[0].classes) == FECAM_FIRST
    held = scenario[2].validation.labels
    assert torch.bincount(held).tolist() == [50] * 20


@pytest.mark.usefixtures("published")
def test_cifar_in_twenty_tasks():
    scenario = split_cifar100("unused", classes_per_task=5, validation=10)
    assert [task.classes for task in scenario[:2]] == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
    assert len(scenario) == 20


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("name", SCENARIO_NAMES)
def test_make_scenario_passes_its_options_on(name):
    seeded = [make_scenario(name, "unused", tasks=2, validation=3, seed=seed) for seed in (0, 1)]
    for scenario in seeded:
        assert len(scenario) == 2
        assert len(scenario[0].validation) == (60 if "fecam" in name else 3)
    orders = [scenario[0].train_preprocess.permutation for scenario in seeded]
    if name.startswith("permuted"):
        assert not torch.equal(*orders)
    else:
        assert orders == [None, None]
    plain = make_scenario(name, "unused", augment=False)[0].train_preprocess
    assert not plain.random
    if name.startswith("split"):
        assert make_scenario(name, "unused", augment=True)[0].train_preprocess.crop > 0


@pytest.mark.usefixtures("published")
def test_split_mnist_without_augmentation_and_normalisation():
    task = make_scenario("split-mnist", "unused", augment=False, normalize=False)[0]
    assert repr(task.train_preprocess) == repr(Preprocess())


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("split-mnits", {}, "did you mean 'split-mnist'.*split-digits, permuted-digits, "),
        ("split-mnist", {"tasks": 6}, "tasks is 6; it must be 1 to 5"),
        ("permuted-mnist", {"tasks": 0}, "tasks is 0"),
        ("split-mnist", {"validation": 1200}, "validation is 1200; it must be 0 to 1199"),
        ("split-cifar100-fecam", {"validation": 60}, "of a class"),
        ("permuted-mnist", {"augment": True}, "'permuted-mnist' has no augment"),
        ("split-digits", {"normalize": True}, "'split-digits' has no normalize"),
    ],
    ids=["name", "tasks", "no-task", "validation", "per-class", "augment", "normalize"],
)
def test_make_scenario_refuses_settings(name, options, says):
    with pytest.raises(ConfigError, match=says):
        make_scenario(name, "unused", **options)


def test_make_scenario_needs_a_root_for_files():
    with pytest.raises(ConfigError, match="give root"):
        make_scenario("split-mnist")
    assert len(make_scenario("split-digits")) == 5


def test_import_loads_no_torchvision():
    code = (
        "import sys, hypermask_fast.scenarios as s; s.split_digits()[0].stream(4).batch(0); "
        "print('torchvision' in sys.modules, 'triton' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["False", "False"]
