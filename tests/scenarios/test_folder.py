"""Images in folders of classes and tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hypermask_fast.errors import ConfigError, DataError
from hypermask_fast.scenarios import from_folder, load_folder

Image = pytest.importorskip("PIL.Image", reason="images are read with Pillow")


def write(folder: Path, count: int, value: int, *, shape: tuple[int, ...] = (4, 6, 3)) -> None:
    """Images of one value each, ``value`` and up."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.full(shape, value + number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")


def first_pixels(images: torch.Tensor) -> list[int]:
    assert images.dtype == torch.uint8
    return images[:, 0, 0, 0].tolist()


def test_every_kth_image_of_a_class_is_a_test_image(tmp_path: Path) -> None:
    write(tmp_path / "dog", 7, 100)
    write(tmp_path / "cat", 5, 10)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    data = load_folder(tmp_path, test_share=0.25)
    assert data.class_names == ("cat", "dog")
    assert data.train.shape == (3, 4, 6)
    assert first_pixels(data.train.images) == [10, 11, 12, 14, 100, 101, 102, 104, 105, 106]
    assert first_pixels(data.test.images) == [13, 103]
    assert data.train.labels.tolist() == [0] * 4 + [1] * 6
    assert data.test.labels.tolist() == [0, 1]


def test_folders_of_training_and_test_images(tmp_path: Path) -> None:
    for part, value in (("train", 0), ("test", 50)):
        write(tmp_path / part / "a", 2, value)
        write(tmp_path / part / "b", 1, value + 9)
    data = load_folder(tmp_path)
    assert first_pixels(data.train.images) == [0, 1, 9]
    assert first_pixels(data.test.images) == [50, 51, 59]


def test_a_class_of_several_tasks_is_one_class(tmp_path: Path) -> None:
    for task, classes in (("one", ("a", "c")), ("two", ("b", "c"))):
        for number, title in enumerate(classes):
            write(tmp_path / task / title, 4, 20 * number)
    scenario = from_folder(tmp_path, test_share=0.5, validation=1)
    assert [(task.name, task.classes, task.class_names) for task in scenario] == [
        ("one", (0, 2), ("a", "c")),
        ("two", (1, 2), ("b", "c")),
    ]
    ((x, y),) = scenario[1].evaluation_batches("test")
    assert (255 * x[:, 0, 0, 0]).round().tolist() == [1, 3, 21, 23]
    assert y.tolist() == [0, 0, 1, 1]
    assert [len(scenario[0].train), len(scenario[0].validation)] == [3, 1]


def test_images_are_resized_and_read_in_grey(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(0, 240, 30, dtype=np.uint8)[:, None], 5, axis=1)
    for number in range(2):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(ramp).save(tmp_path / "a" / f"{number}.png")
    data = load_folder(tmp_path, size=(4, 2), grayscale=True, test_share=0.5)
    assert data.train.shape == (1, 4, 2)
    # An antialiased halving weighs the two rows inside and, less, their neighbours: on a ramp the
    # mean of the two, but at the ends.
    inner = data.train.images[0, 0, 1:3, 0].tolist()
    assert inner == pytest.approx([75, 135], abs=1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda root: (root / "b").mkdir(), "no test image of class 'b'|no train image of class"),
        (lambda root: write(root / "b", 2, 0, shape=(4, 5, 3)), "4 x 5 pixels .* size="),
        (lambda root: write(root / "b", 1, 0), "no train image|no test image"),
        (
            lambda root: (root / "a" / "000.png").write_bytes(b"\x89PNG broken"),
            "000.png is no image that can be read",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: Any, match: str) -> None:
    write(tmp_path / "a", 4, 0)
    change(tmp_path)
    with pytest.raises(DataError, match=match):
        load_folder(tmp_path, test_share=0.5)


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing is no folder"):
        load_folder(tmp_path / "missing")
    with pytest.raises(DataError, match="has no folder of a class"):
        load_folder(tmp_path)
    with pytest.raises(DataError, match="give one with a folder for each task"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (3, 3, 3)},
        {"size": 0},
        {"size": "3"},
        {"test_share": 0.0},
        {"test_share": 0.6},
        {"test_share": float("nan")},
        {"grayscale": 1},
        {"name": 3},
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    write(tmp_path / "a", 4, 0)
    with pytest.raises(ConfigError):
        load_folder(tmp_path, **options)
