"""Tiny ImageNet: reads it from the published zip or the folder that it unpacks to.

The zip is read in place and never unpacked, so that nothing in it can be written anywhere. What
was decoded is kept in one file beside the data, which later calls read in its place.
"""

from __future__ import annotations

import io
import os
import re
import stat
import tempfile
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hypermask_fast.errors import DataError
from hypermask_fast.fields import check_value
from hypermask_fast.scenarios.builders import split
from hypermask_fast.scenarios.images import ImageDataset, ImageSet
from hypermask_fast.scenarios.pictures import read_image
from hypermask_fast.scenarios.preprocess import cifar_options
from hypermask_fast.scenarios.scenario import Scenario

_FOLDER = "tiny-imagenet-200"
_SHAPE = (3, 64, 64)
_MOST_BYTES = 2**20  # of one file in the zip; words.txt of the published one has 2.6 MB
_MOST_WORDS = 2**24
_WNID = re.compile(r"n\d{8}")


class Counts(NamedTuple):
    """Numbers of classes, and of training and validation images of each."""

    classes: int
    train: int
    test: int


PUBLISHED = Counts(200, 500, 50)


def load_tiny_imagenet(root: str | Path) -> ImageDataset:
    """Return Tiny ImageNet: 100,000 and 10,000 images of 3x64x64 in 200 classes (Stanford, 2015).

    The test images are the published validation images, for the labels of the published test
    images are not known. Classes are in the order of ``wnids.txt``, their names the first of
    ``words.txt``.

    Args:
        root: Folder that holds ``tiny-imagenet-200.zip``, or what it unpacks to,
            ``tiny-imagenet-200/{wnids.txt,train,val}``; the zip is taken where both are there. It
            gets ``tiny-imagenet-200.npz``, the decoded images (1.3 GB), which is read from then on.

    Raises:
        DataError: Neither is there, an image is missing, or a file is damaged.
    """
    folder = Path(check_value("root", str, root)).expanduser()
    cache = folder / f"{_FOLDER}.npz"
    if cache.is_file():
        return _dataset(_read_cache(cache))
    with _opened(folder) as files:
        arrays = _decoded(files)
    try:
        _write_cache(cache, arrays)
    except OSError as error:
        warnings.warn(
            f"{cache} cannot be written ({error}), so the images are decoded at each start; free "
            "space or correct the permissions",
            stacklevel=2,
        )
    return _dataset(arrays)


def split_tiny_imagenet(
    root: str | Path,
    tasks: int | None = None,
    validation: int = 250,
    augment: bool = False,
    normalize: bool = True,
    seed: int = 0,
) -> Scenario:
    """Return Tiny ImageNet in 40 tasks of 5 classes in a random order, as HyperMask used it.

    HyperMask's published runs on it name an augmentation that is never applied; nor is it here.

    Args:
        root: Folder of the data set; see :func:`load_tiny_imagenet`.
        tasks: Keep only the first tasks. Default: all 40.
        validation: Held-out images of each task, the first ones of each class. Default 250.
        augment: Random crop to 64x64 with padding 4, and random horizontal flip. Default False.
        normalize: ImageNet's mean and standard deviation. Default True.
        seed: Of NumPy's ``default_rng``, whose permutation of the classes their order is. Default
            0; published with 5 to 9.
    """
    check_value("seed", int, seed, low=0)
    options = cifar_options(augment, normalize)
    dataset = load_tiny_imagenet(root)
    order = np.random.default_rng(seed).permutation(dataset.num_classes).tolist()
    return split(
        dataset,
        5,
        class_order=order,
        tasks=tasks,
        validation=validation,
        stratified=True,
        **options,
    )


class _Files(ABC):
    """The files of the data set, by their paths within it, with forward slashes."""

    title: str
    fix: str

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder; none where it is not there."""

    @abstractmethod
    def read(self, path: str, most: int = _MOST_BYTES) -> bytes:
        """Return a file's content, of which ``most`` bytes are believable."""

    def damaged(self, what: str) -> DataError:
        return DataError(f"{self.title} {what}; {self.fix}")


class _Unpacked(_Files):
    fix = f"unpack {_FOLDER}.zip again, or put the zip itself there, which is read as it is"

    def __init__(self, path: Path) -> None:
        self._path, self.title = path, str(path)

    def names(self, folder: str) -> list[str]:
        path = self._path / folder
        return [entry.name for entry in path.iterdir()] if path.is_dir() else []

    def read(self, path: str, most: int = _MOST_BYTES) -> bytes:
        try:
            return (self._path / path).read_bytes()
        except OSError as error:
            raise self.damaged(f"has a {path} that cannot be read ({error})") from error


class _Zipped(_Files):
    fix = f"replace it by the published {_FOLDER}.zip"

    def __init__(self, path: Path) -> None:
        self.title = str(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise self.damaged(f"is no whole zip ({error})") from error
        self._folders: dict[str, list[str]] = {}
        for info in self._zip.infolist():
            self._check(info)
            parent, _, name = info.filename.rpartition("/")
            self._folders.setdefault(parent, []).append(name)

    def _check(self, info: zipfile.ZipInfo) -> None:
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise self.damaged(f"has an entry {info.filename!r}, which lies outside of its folder")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise self.damaged(f"has an entry {info.filename!r}, which is a link")

    def close(self) -> None:
        self._zip.close()

    def names(self, folder: str) -> list[str]:
        inside = f"{_FOLDER}/{folder}".rstrip("/")
        return [name for name in self._folders.get(inside, []) if name]

    def read(self, path: str, most: int = _MOST_BYTES) -> bytes:
        info = self._zip.NameToInfo.get(f"{_FOLDER}/{path}")
        if info is None:
            raise self.damaged(f"has no {path}")
        if info.file_size > most:
            raise self.damaged(f"has a {path} of {info.file_size} bytes, expected {most} at most")
        try:
            return self._zip.read(info)
        # RuntimeError: it asks for a password.
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
            raise self.damaged(f"has a {path} that cannot be read ({error})") from error


@contextmanager
def _opened(root: Path) -> Iterator[_Files]:
    packed, unpacked = root / f"{_FOLDER}.zip", root / _FOLDER
    if packed.is_file():
        files = _Zipped(packed)
        try:
            yield files
        finally:
            files.close()
    elif unpacked.is_dir():
        yield _Unpacked(unpacked)
    else:
        raise DataError(
            f"tiny-imagenet: neither {_FOLDER}.zip nor the folder {_FOLDER} is in {root}; put the "
            "published zip there, or give another folder"
        )


def _decoded(files: _Files) -> dict[str, np.ndarray]:
    """Return the arrays of the cache."""
    wnids = _text(files, "wnids.txt").split()
    if len(set(wnids)) != PUBLISHED.classes or not all(map(_WNID.fullmatch, wnids)):
        raise files.damaged(
            f"has {len(set(wnids))} classes in its wnids.txt, expected {PUBLISHED.classes} such as "
            "n01443537"
        )
    train = {wnid: _training_images(files, wnid) for wnid in wnids}
    test = _validation_images(files, wnids)
    for part, classes, count in (
        ("training", train, PUBLISHED.train),
        ("validation", test, PUBLISHED.test),
    ):
        for wnid, paths in classes.items():
            if len(paths) != count:
                raise files.damaged(
                    f"has {len(paths)} {part} images of class {wnid}, expected {count}"
                )
    return {
        "train": _pixels(files, [path for paths in train.values() for path in paths]),
        "test": _pixels(files, [path for paths in test.values() for path in paths]),
        "names": np.array(_class_names(files, wnids)),
    }


def _text(files: _Files, path: str, most: int = _MOST_BYTES) -> str:
    return files.read(path, most).decode("utf-8", errors="replace")


def _training_images(files: _Files, wnid: str) -> list[str]:
    folder = f"train/{wnid}/images"
    names = [name for name in files.names(folder) if name.endswith(".JPEG")]
    # By their numbers, which are the end of the names.
    return [f"{folder}/{name}" for name in sorted(names, key=lambda name: (len(name), name))]


def _validation_images(files: _Files, wnids: Iterable[str]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    left = set(files.names("val/images"))
    for line in _text(files, "val/val_annotations.txt").splitlines():
        name, wnid = [*line.split("\t"), "", ""][:2]
        if name not in left or wnid not in found:
            raise files.damaged(
                f"has a line {line[:40]!r} in val/val_annotations.txt, and no such image or class"
            )
        left.remove(name)
        found[wnid].append(f"val/images/{name}")
    return found


def _class_names(files: _Files, wnids: Iterable[str]) -> list[str]:
    words: dict[str, str] = {}
    if "words.txt" in files.names(""):
        for line in _text(files, "words.txt", _MOST_WORDS).splitlines():
            wnid, _, title = line.partition("\t")
            words[wnid] = title.partition(",")[0].strip()
    return [words.get(wnid) or wnid for wnid in wnids]


def _pixels(files: _Files, paths: Sequence[str]) -> np.ndarray:
    images = np.empty((len(paths), *_SHAPE), np.uint8)
    for place, path in enumerate(paths):
        image = read_image(io.BytesIO(files.read(path)), title=f"{files.title}: {path}")
        if image.shape != _SHAPE:
            raise files.damaged(f"has a {path} of shape {tuple(image.shape)}, expected {_SHAPE}")
        images[place] = image.numpy()
    return images


def _write_cache(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a cache, whole or not at all."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        with suppress(OSError):  # gone already after the rename
            os.unlink(name)


def _read_cache(path: Path) -> dict[str, np.ndarray]:
    counts = PUBLISHED
    shapes = {
        "train": (counts.classes * counts.train, *_SHAPE),
        "test": (counts.classes * counts.test, *_SHAPE),
        "names": (counts.classes,),
    }
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in shapes}
    # A damaged file can raise anything.
    except Exception as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}); delete it, and it is made "
            "again from the data set"
        ) from error
    seen = {name: array.shape for name, array in arrays.items()}
    if seen != shapes or arrays["train"].dtype != np.uint8 or arrays["test"].dtype != np.uint8:
        raise DataError(
            f"{path} has arrays of shapes {seen}, expected {shapes}, the images uint8; delete it, "
            "and it is made again from the data set"
        )
    return arrays


def _dataset(arrays: Mapping[str, np.ndarray]) -> ImageDataset:
    def image_set(images: np.ndarray, count: int) -> ImageSet:
        labels: Tensor = torch.arange(PUBLISHED.classes).repeat_interleave(count)
        return ImageSet(torch.from_numpy(images), labels)

    return ImageDataset(
        "tiny-imagenet",
        image_set(arrays["train"], PUBLISHED.train),
        image_set(arrays["test"], PUBLISHED.test),
        tuple(map(str, arrays["names"])),
    )
