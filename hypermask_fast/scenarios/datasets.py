"""Loaders of image data sets as uint8 tensors: UCI digits, MNIST, Fashion-MNIST and CIFAR.

The digits come with the package (``digits.npz``, about 45 kB): the test file of "Optical
Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (UCI Machine Learning Repository,
1998, https://doi.org/10.24432/C50P49), in scikit-learn's copy, under CC BY 4.0. ``digits.txt``
beside it says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from hypermask_fast.errors import ConfigError, DataError, nearest, shown
from hypermask_fast.fields import check_value
from hypermask_fast.scenarios.download import fetch_missing
from hypermask_fast.scenarios.files import read_idx, read_pickle
from hypermask_fast.scenarios.images import ImageDataset, ImageSet
from hypermask_fast.scenarios.tiny_imagenet import load_tiny_imagenet
from hypermask_fast.vision import import_torchvision

_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_DIGITS_TEST_EVERY = 5


def _image_set(images: np.ndarray, labels: np.ndarray, name: str) -> ImageSet:
    if len(images) != len(labels):
        raise DataError(
            f"{name} holds {len(images)} images and {len(labels)} labels; they must be as many, so "
            "replace the files"
        )
    # A copy: tensors need memory that can be written to.
    return ImageSet(torch.tensor(images), torch.tensor(labels.astype(np.int64)))


def load_digits() -> ImageDataset:
    """Return the UCI digits: 1797 images of 8x8, which come with the package.

    The values 0 to 16 are scaled to 0 to 255 and rounded. Of each digit, every fifth image in file
    order is a test image: 1442 for training, 355 for testing. (Rule of this package; the UCI
    training file is not included.)
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    images = np.rint(images[:, None] * (255 / 16)).astype(np.uint8)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        places = np.flatnonzero(labels == digit)
        held_out[places[_DIGITS_TEST_EVERY - 1 :: _DIGITS_TEST_EVERY]] = True
    train, test = (
        _image_set(images[part], labels[part], "digits") for part in (~held_out, held_out)
    )
    return ImageDataset("digits", train, test, _DIGITS)


def _download(class_name: str, root: str) -> None:
    datasets = import_torchvision().datasets
    # One download brings both splits; the loading that follows it is torchvision's own check.
    getattr(datasets, class_name)(root, train=False, download=True)


def _folder(root: str | Path, download: bool) -> Path:
    check_value("download", bool, download)
    return Path(check_value("root", str, root)).expanduser()


def _load_idx_family(
    name: str,
    folder: str,
    class_names: tuple[str, ...],
    root: str | Path,
    download: bool,
) -> ImageDataset:
    root = _folder(root, download)
    files = {
        part: (
            f"{folder}/raw/{prefix}-images-idx3-ubyte",
            f"{folder}/raw/{prefix}-labels-idx1-ubyte",
        )
        for part, prefix in (("train", "train"), ("test", "t10k"))
    }
    fetch_missing(
        root,
        [file for pair in files.values() for file in pair],
        partial(_download, folder) if download else None,
        name,
    )
    sets = {
        part: _image_set(
            read_idx(root, images, 3)[:, None], read_idx(root, labels, 1), f"{name} ({part})"
        )
        for part, (images, labels) in files.items()
    }
    return ImageDataset(name, sets["train"], sets["test"], class_names)


def load_mnist(root: str | Path, download: bool = True) -> ImageDataset:
    """Return MNIST: 60,000 and 10,000 images of 28x28 (LeCun and Cortes).

    Args:
        root: Folder that holds, or gets, ``MNIST/raw/*-ubyte`` (torchvision's layout; ``.gz`` too).
        download: Download through torchvision what is missing. Default True.

    Raises:
        DataError: files are missing and cannot be downloaded, or a file is damaged.
    """
    return _load_idx_family("mnist", "MNIST", _DIGITS, root, download)


def load_fashion_mnist(root: str | Path, download: bool = True) -> ImageDataset:
    """Return Fashion-MNIST: 60,000 and 10,000 images of 28x28 (Xiao, Rasul and Vollgraf, 2017).

    Args:
        root: Folder that holds, or gets, ``FashionMNIST/raw/*-ubyte``; as for :func:`load_mnist`.
        download: Download through torchvision what is missing. Default True.

    Raises:
        DataError: files are missing and cannot be downloaded, or a file is damaged.
    """
    return _load_idx_family("fashion-mnist", "FashionMNIST", _FASHION, root, download)


def _cifar_set(root: Path, files: Sequence[str], key: str, title: str) -> ImageSet:
    """Return the images of files, and their labels, which have this key."""
    images, labels = [], []
    for relative in files:
        content = read_pickle(root, relative)
        data, some = content.get("data"), content.get(key)
        if (
            not isinstance(data, np.ndarray)
            or data.dtype != np.uint8
            or data.shape[1:] != (3072,)
            or not isinstance(some, list)
            or not all(isinstance(label, int) for label in some)
        ):
            raise DataError(
                f"{root / relative} lacks the uint8 array 'data' (n, 3072) or the list '{key}' "
                "of integers; replace or delete the file and load again"
            )
        images.append(data.reshape(-1, 3, 32, 32))
        labels += some
    return _image_set(np.concatenate(images), np.array(labels), title)


def _cifar_names(root: Path, relative: str, key: str) -> tuple[str, ...]:
    names = read_pickle(root, relative).get(key)
    if not isinstance(names, list):
        raise DataError(
            f"{root / relative} lacks the list '{key}'; replace or delete the file and load again"
        )
    return tuple(map(str, names))


def load_cifar10(root: str | Path, download: bool = True) -> ImageDataset:
    """Return CIFAR-10: 50,000 and 10,000 images of 3x32x32 in 10 classes (Krizhevsky, 2009).

    Args:
        root: Folder that holds, or gets, ``cifar-10-batches-py/{data_batch_1,...,test_batch}`` and
            ``batches.meta`` there.
        download: Download through torchvision what is missing. Default True.

    Raises:
        DataError: files are missing and cannot be downloaded, or a file is damaged.
    """
    root = _folder(root, download)
    folder = "cifar-10-batches-py"
    batches = [f"{folder}/data_batch_{number}" for number in range(1, 6)]
    test, meta = f"{folder}/test_batch", f"{folder}/batches.meta"
    fetch_missing(
        root,
        [*batches, test, meta],
        partial(_download, "CIFAR10") if download else None,
        "cifar10",
    )
    names = _cifar_names(root, meta, "label_names")
    train_set, test_set = (
        _cifar_set(root, files, "labels", f"cifar10 ({part})")
        for part, files in (("train", batches), ("test", [test]))
    )
    return ImageDataset("cifar10", train_set, test_set, names)


def load_cifar100(root: str | Path, download: bool = True) -> ImageDataset:
    """Return CIFAR-100: 50,000 and 10,000 images of 3x32x32 in 100 fine classes (Krizhevsky, 2009).

    Args:
        root: Folder that holds, or gets, ``cifar-100-python/{train,test,meta}``.
        download: Download through torchvision what is missing. Default True.

    Raises:
        DataError: files are missing and cannot be downloaded, or a file is damaged.
    """
    root = _folder(root, download)
    fetch_missing(
        root,
        [f"cifar-100-python/{file}" for file in ("train", "test", "meta")],
        partial(_download, "CIFAR100") if download else None,
        "cifar100",
    )
    names = _cifar_names(root, "cifar-100-python/meta", "fine_label_names")
    train, test = (
        _cifar_set(root, [f"cifar-100-python/{part}"], "fine_labels", f"cifar100 ({part})")
        for part in ("train", "test")
    )
    return ImageDataset("cifar100", train, test, names)


_LOADERS: dict[str, Callable[[str | Path, bool], ImageDataset]] = {
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "tiny-imagenet": lambda root, _: load_tiny_imagenet(root),
}


def load(name: str, root: str | Path | None = None, download: bool = True) -> ImageDataset:
    """Return a data set by name: "digits", "mnist", "cifar100", "tiny-imagenet" and so on.

    Args:
        name: Name of the data set.
        root: Folder of the data sets; not needed for the digits.
        download: Download what is missing, but for Tiny ImageNet. Default True.

    Raises:
        ConfigError: there is no data set of this name, or it needs a root.
        DataError: files are missing and cannot be downloaded, or a file is damaged.
    """
    names = ("digits", *_LOADERS)
    if name not in names:
        raise ConfigError(
            f"there is no data set {shown(name)}{nearest(name, names)}; use one of "
            f"{', '.join(names)}"
        )
    if name == "digits":
        return load_digits()
    if root is None:
        raise ConfigError(f"the data set {name!r} needs a folder for its files; give root")
    return _LOADERS[name](root, download)
