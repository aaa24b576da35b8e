"""Images in folders: a folder a class, and a folder a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch

from hypermask_fast.errors import ConfigError, DataError, shown
from hypermask_fast.fields import check_value
from hypermask_fast.scenarios.builders import split
from hypermask_fast.scenarios.images import ImageDataset, ImageSet
from hypermask_fast.scenarios.pictures import read_image
from hypermask_fast.scenarios.scenario import Scenario

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}


def load_folder(
    root: str | Path,
    *,
    size: int | Sequence[int] | None = None,
    grayscale: bool = False,
    test_share: float = 0.2,
    name: str | None = None,
) -> ImageDataset:
    """Read a data set of images from a folder for each class.

    ``root`` has the folders ``train`` and ``test``, each with a folder for each class, or these
    folders themselves: then every k-th image of a class, by name, is a test image. Classes are in
    the order of their names. Files of other kinds, and those whose name begins with a dot, are not
    looked at. All images are held in memory, a byte a channel and pixel; :func:`make_task` takes a
    Dataset that reads them as they are needed.

    Args:
        root: The folder.
        size: Height and width, or one number for both, that images are resized to (bilinear,
            antialiased). Default: as they are, all of one size.
        grayscale: Read one channel in place of three. Default False.
        test_share: Share of test images where there is no folder of them, above 0, at most 0.5.
            Default 0.2.
        name: Of the data set. Default: the folder's.

    Raises:
        DataError: There is no such folder, a class has no image, or a file is no image or has
            another size.
        ConfigError: An option is wrong.
    """
    path, height_width = _checked(root, size, grayscale, test_share, name)
    files = _files(path, test_share)
    return _read(name or path.name, files, height_width, grayscale)


def from_folder(
    root: str | Path,
    *,
    size: int | Sequence[int] | None = None,
    grayscale: bool = False,
    test_share: float = 0.2,
    validation: int = 0,
    crop: int = 0,
    flip: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    name: str | None = None,
) -> Scenario:
    """Make a scenario of a folder for each task, which :func:`load_folder` reads.

    Folders of one class name are one class, in whatever task.

    Args:
        root: The folder; its folders are the tasks, in the order of their names.
        size, grayscale, test_share, name: As for :func:`load_folder`.
        validation, crop, flip, mean, std: As for :func:`split`.

    Raises:
        DataError: There is no task, or as :func:`load_folder`.
        ConfigError: An option is wrong, or tasks have images of several sizes.
    """
    path, height_width = _checked(root, size, grayscale, test_share, name)
    folders = _folders(path)
    if not folders:
        raise DataError(f"{path} has no folder; give one with a folder for each task")
    files = {folder.name: _files(folder, test_share) for folder in folders}
    every_class = sorted({title for parts in files.values() for title in parts["train"]})
    tasks = []
    for task, parts in files.items():
        dataset = _read(task, parts, height_width, grayscale)
        (made,) = split(
            _renumbered(dataset, every_class),
            class_order=[every_class.index(title) for title in dataset.class_names],
            validation=validation,
            crop=crop,
            flip=flip,
            mean=mean,
            std=std,
        )
        tasks.append(replace(made, name=task))
    return Scenario(name or path.name, tasks)


def _checked(
    root: str | Path,
    size: int | Sequence[int] | None,
    grayscale: bool,
    test_share: float,
    name: str | None,
) -> tuple[Path, tuple[int, int] | None]:
    path = Path(check_value("root", str, root)).expanduser()
    check_value("grayscale", bool, grayscale)
    check_value("name", str, name, None)
    check_value("test_share", float, test_share)
    if not 0 < test_share <= 0.5:
        raise ConfigError(f"test_share is {test_share}; give a share above 0, at most 0.5")
    if not path.is_dir():
        raise DataError(f"{path} is no folder; give the one that has the images")
    if size is None:
        return path, None
    sides = (size, size) if isinstance(size, int) else size
    height_width: tuple[int, ...] = check_value("size", tuple, sides, low=1)
    if len(height_width) != 2:
        raise ConfigError(f"size is {shown(size)}; give a height and a width, or one for both")
    return path, (height_width[0], height_width[1])


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(path: Path) -> list[Path]:
    return sorted(
        p
        for p in path.iterdir()
        if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


_Parts = Mapping[str, Mapping[str, Sequence[Path]]]


def _files(path: Path, test_share: float) -> _Parts:
    """Return the images of each class, of training and of tests."""
    names = [folder.name for folder in _folders(path)]
    parts: dict[str, dict[str, Sequence[Path]]] = {"train": {}, "test": {}}
    if "train" in names and "test" in names:
        for part, classes in parts.items():
            classes |= {folder.name: _images(folder) for folder in _folders(path / part)}
    else:
        every = round(1 / test_share)
        for folder in _folders(path):
            images = _images(folder)
            parts["test"][folder.name] = images[every - 1 :: every]
            parts["train"][folder.name] = [p for i, p in enumerate(images) if (i + 1) % every]
    for part, classes in parts.items():
        if not classes:
            raise DataError(f"{path} has no folder of a class for {part}; make one for each class")
        for title in parts["train"]:
            if not classes.get(title):
                raise DataError(
                    f"{path} has no {part} image of class {title!r}, of the kinds "
                    f"{' '.join(sorted(_SUFFIXES))}; add some"
                )
    if strange := sorted(parts["test"].keys() - parts["train"].keys()):
        raise DataError(f"{path} has test images of {strange}, and none to train with; add some")
    return parts


def _read(name: str, parts: _Parts, size: tuple[int, int] | None, grayscale: bool) -> ImageDataset:
    titles = sorted(parts["train"])
    first = parts["train"][titles[0]][0]
    shape = read_image(first, size, grayscale).shape
    train, test = (
        _read_set(parts[part], titles, shape, size, grayscale) for part in ("train", "test")
    )
    return ImageDataset(name, train, test, tuple(titles))


def _read_set(
    classes: Mapping[str, Sequence[Path]],
    titles: Sequence[str],
    shape: torch.Size,
    size: tuple[int, int] | None,
    grayscale: bool,
) -> ImageSet:
    counts = [len(classes[title]) for title in titles]
    images = torch.empty(sum(counts), *shape, dtype=torch.uint8)
    for place, file in enumerate(chain.from_iterable(classes[title] for title in titles)):
        image = read_image(file, size, grayscale)
        if image.shape != shape:
            raise DataError(
                f"{file} has {image.shape[1]} x {image.shape[2]} pixels and others have "
                f"{shape[1]} x {shape[2]}; give size= to resize them all"
            )
        images[place] = image
    return ImageSet(images, torch.arange(len(titles)).repeat_interleave(torch.tensor(counts)))


def _renumbered(dataset: ImageDataset, every_class: Iterable[str]) -> ImageDataset:
    names = tuple(every_class)
    ids = torch.tensor([names.index(title) for title in dataset.class_names])
    train, test = (
        ImageSet(part.images, ids[part.labels]) for part in (dataset.train, dataset.test)
    )
    return ImageDataset(dataset.name, train, test, names)
