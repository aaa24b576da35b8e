"""Files that are missing are downloaded, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hypermask_fast import vision
from hypermask_fast.errors import DataError
from hypermask_fast.scenarios import datasets, load_cifar100, load_fashion_mnist, load_mnist
from tests.support.data_files import TRAIN_IMAGES, TRAIN_LABELS, idx, make_idx, tree, write


@pytest.mark.parametrize(
    ("loader", "names", "folder"),
    [
        (load_mnist, "train-images-idx3-ubyte, train-labels-idx1-ubyte", "MNIST/raw"),
        (load_fashion_mnist, "train-images-idx3-ubyte, train-labels", "FashionMNIST/raw"),
        (load_cifar100, "train, test, meta", "cifar-100-python"),
    ],
    ids=["mnist", "fashion", "cifar100"],
)
def test_missing_files_are_named(tmp_path, loader, names, folder):
    with pytest.raises(DataError) as error:
        loader(tmp_path / "none", download=False)
    for part in (names, str(tmp_path / "none" / folder), "download=True"):
        assert part in str(error.value)
    assert tree(tmp_path) == []


@pytest.mark.parametrize("exists", [True, False], ids=["root-there", "root-new"])
def test_failed_download_leaves_nothing_and_tells_the_reason(tmp_path, monkeypatch, exists):
    def fail(class_name, root):
        write(Path(root) / TRAIN_IMAGES, b"half a file")
        raise OSError("<urlopen error\n [Errno -2] Name or service not known>")

    monkeypatch.setattr(datasets, "_download", fail)
    root = tmp_path if exists else tmp_path / "a" / "b"
    with pytest.raises(DataError, match="Name or service not known") as error:
        load_mnist(root)
    assert "connect to the network" in str(error.value)
    assert "\n" not in str(error.value)
    assert tree(tmp_path) == []


@pytest.mark.usefixtures("unknown")
def test_download_brings_only_what_is_missing(tmp_path, monkeypatch):
    calls = []

    def fetch(class_name, root):
        calls.append(class_name)
        make_idx(Path(root), class_name)

    monkeypatch.setattr(datasets, "_download", fetch)
    labels = np.arange(20, dtype=np.uint8)[::-1] % 10
    write(tmp_path / TRAIN_LABELS, idx(np.ascontiguousarray(labels)))
    dataset = load_mnist(tmp_path)
    assert dataset.train.labels.tolist() == labels.tolist()
    assert calls == ["MNIST"]
    assert len(tree(tmp_path)) == len(("MNIST", "raw")) + 4
    load_mnist(tmp_path)
    assert calls == ["MNIST"]


def test_torchvision_that_is_not_installed_is_the_reason(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(vision.importlib, "import_module", missing)
    with pytest.raises(DataError, match="No module named 'torchvision'"):
        load_cifar100(tmp_path)


def test_other_import_errors_of_torchvision_are_kept(monkeypatch):
    def broken(name):
        raise RuntimeError("undefined symbol")

    monkeypatch.setattr(vision.importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="undefined symbol"):
        vision.import_torchvision()
