"""The published scenarios follow their protocols."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hypermask_fast.errors import ConfigError
from hypermask_fast.scenarios import (
    SCENARIO_NAMES,
    Preprocess,
    make_scenario,
    split_cifar100,
    split_cifar100_fecam,
)
from tests.support.scenario_cases import replace_datasets

# The first block of the class order published for HyperMask with FeCAM.
FECAM_FIRST = {87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10, 72, 49, 78, 61, 14, 8, 86}


@pytest.fixture
def published(monkeypatch):
    """Stand-ins for the data sets that are not here: small, and of the same shapes."""
    replace_datasets(monkeypatch)


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
        pytest.param(
            "split-cifar10-100", 6, (3, 32, 32), [range(10), range(10, 20)], (6000, 0, 6000),
            "pad=0, permuted=False, crop=4, flip=True, mean=[0.485, 0.456, 0.406], "
            "std=[0.229, 0.224, 0.225]",
            "pad=0, permuted=False, crop=0, flip=False, mean=[0.485, 0.456, 0.406], "
            "std=[0.229, 0.224, 0.225]",
            id="split-cifar10-100",
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
def test_after_cifar10_come_the_classes_of_cifar100():
    scenario = make_scenario("split-cifar10-100", "unused", tasks=11)
    assert [c for task in scenario for c in task.classes] == list(range(110))
    assert [len(task.train) for task in scenario] == [6000, *[600] * 10]
    last = scenario[10].train
    # Images 6000 and on are CIFAR-100's, of the class by their number.
    assert ((last.index - 6000) % 100 - 90).tolist() == last.labels.tolist()


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
    plain = make_scenario(name, "unused", validation=3, augment=False)[0].train_preprocess
    assert not plain.random
    if name.startswith("split"):
        assert make_scenario(name, "unused", validation=3, augment=True)[0].train_preprocess.crop


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
