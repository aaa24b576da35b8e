"""Loaders of image data sets, against files written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hypermask_fast import vision
from hypermask_fast.errors import ConfigError, DataError
from hypermask_fast.scenarios import (
    files,
    load,
    load_cifar10,
    load_cifar100,
    load_digits,
    load_fashion_mnist,
    load_mnist,
)
from tests.support.data_files import (
    TRAIN_LABELS,
    idx,
    make_cifar,
    make_cifar10,
    make_idx,
    write,
)


def test_digits_are_the_uci_images_split_by_rule():
    digits = load_digits()
    bundled = np.load(Path(files.__file__).with_name("digits.npz"), allow_pickle=False)
    images, labels = bundled["images"], bundled["labels"]
    assert (len(digits.train), len(digits.test)) == (1442, 355)
    counts = {digit: 0 for digit in range(10)}
    expected = {"train": [], "test": []}
    for place, label in enumerate(labels):
        counts[int(label)] += 1
        expected["test" if counts[int(label)] % 5 == 0 else "train"].append(place)
    for part, places in expected.items():
        image_set = getattr(digits, part)
        assert image_set.labels.tolist() == labels[places].tolist()
        # 0..16 is scaled to 0..255 and rounded.
        error = image_set.images[:, 0].numpy() - images[places] * 15.9375
        assert np.abs(error).max() <= 0.5
        assert image_set.images.min() == 0
        assert image_set.images.max() == 255


def test_digits_are_scikit_learns():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    bundled = np.load(Path(files.__file__).with_name("digits.npz"), allow_pickle=False)
    assert np.array_equal(bundled["images"], source.images)
    assert np.array_equal(bundled["labels"], source.target)


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gz"])
@pytest.mark.parametrize(
    ("loader", "folder"),
    [(load_mnist, "MNIST"), (load_fashion_mnist, "FashionMNIST")],
    ids=["mnist", "fashion"],
)
def test_idx_files_are_read(tmp_path, loader, folder, packed):
    arrays = make_idx(tmp_path, folder, packed)
    dataset = loader(tmp_path, download=False)
    for image_set, prefix in ((dataset.train, "train"), (dataset.test, "t10k")):
        assert image_set.images.dtype == torch.uint8
        assert image_set.labels.dtype == torch.int64
        assert np.array_equal(image_set.images[:, 0], arrays[f"{prefix}-images-idx3-ubyte"])
        assert np.array_equal(image_set.labels, arrays[f"{prefix}-labels-idx1-ubyte"])
    assert len(dataset.class_names) == 10


@pytest.mark.usefixtures("unknown")
def test_idx_files_are_torchvisions(tmp_path):
    try:
        torchvision = vision.import_torchvision()
    except ImportError:
        pytest.skip("needs torchvision")
    make_idx(tmp_path)
    dataset = load_mnist(str(tmp_path), download=False)
    for image_set, train in ((dataset.train, True), (dataset.test, False)):
        reference = torchvision.datasets.MNIST(tmp_path, train=train)
        assert torch.equal(image_set.images[:, 0], reference.data)
        assert torch.equal(image_set.labels, reference.targets)


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros(19, np.uint8), "20 images and 19 labels"),
        (np.full(20, 10, np.uint8), "labels from 10 to 10; expected 0 to 9"),
    ],
    ids=["count", "range"],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, says):
    make_idx(tmp_path)
    write(tmp_path / TRAIN_LABELS, idx(labels))
    with pytest.raises(DataError, match=says):
        load_mnist(tmp_path, download=False)


@pytest.mark.usefixtures("unknown")
def test_cifar_pickles_are_read(tmp_path):
    content = make_cifar(tmp_path)
    dataset = load_cifar100(tmp_path, download=False)
    for part in ("train", "test"):
        image_set = getattr(dataset, part)
        planes = content[part]["data"].reshape(-1, 3, 32, 32)
        assert np.array_equal(image_set.images, planes)
        assert image_set.labels.tolist() == content[part]["fine_labels"]
    assert dataset.class_names == tuple(f"name{i}" for i in range(100))


@pytest.mark.usefixtures("unknown")
def test_the_batches_of_cifar10_are_joined_in_order(tmp_path):
    content = make_cifar10(tmp_path)
    dataset = load_cifar10(tmp_path, download=False)
    batches = [content[f"data_batch_{i}"] for i in range(1, 6)]
    planes = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    assert np.array_equal(dataset.train.images, planes)
    assert dataset.train.labels.tolist() == [x for batch in batches for x in batch["labels"]]
    assert dataset.test.labels.tolist() == content["test_batch"]["labels"]
    assert dataset.class_names == tuple(f"kind{i}" for i in range(10))


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize(
    ("name", "make", "images"),
    [("mnist", make_idx, 20), ("cifar10", make_cifar10, 100), ("cifar100", make_cifar, 8)],
    ids=["mnist", "cifar10", "cifar100"],
)
def test_load_by_name(tmp_path, name, make, images):
    make(tmp_path)
    dataset = load(name, tmp_path, download=False)
    assert dataset.name == name
    assert len(dataset.train) == images
    assert len(load("digits").train) == 1442


def test_load_refuses_names_and_needs_a_root():
    with pytest.raises(ConfigError, match=r"did you mean 'mnist'.*digits, mnist, fashion-mnist"):
        load("mnits")
    with pytest.raises(ConfigError, match="give root"):
        load("mnist")
