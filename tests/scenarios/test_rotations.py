"""Rotated images are those of Pillow, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hypermask_fast.errors import ConfigError
from hypermask_fast.scenarios import Preprocess, load_digits, rotated
from hypermask_fast.scenarios.rotations import rotation


@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (7, 12)], ids=str)
def test_pixels_are_those_of_pillow(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    flat = torch.from_numpy(image).flatten()
    for degrees in (*range(0, 360, 10), 45, 90, 270, 33.3, -20, 370):
        source = rotation(*shape, degrees)
        found = torch.where(source < 0, 0, flat[source.clamp_min(0)]).view(shape)
        expected = np.asarray(Image.fromarray(image).rotate(degrees))
        assert np.array_equal(found.numpy(), expected), degrees


def test_tasks_turn_the_same_images() -> None:
    scenario = rotated(load_digits(), 5, degrees=90.0, validation=10)
    assert [task.name for task in scenario][-1] == "digits rotation 4"
    assert scenario[1].classes == tuple(range(10, 20))
    first, quarter, *_, full = (next(task.evaluation_batches("test"))[0] for task in scenario)
    assert torch.equal(quarter, first.rot90(1, (2, 3)))
    assert torch.equal(full, first)
    with pytest.raises(ConfigError, match="tasks is 0"):
        rotated(load_digits(), 0)


def test_a_source_moves_pixels_and_leaves_black_ones() -> None:
    images = torch.arange(1, 9, dtype=torch.uint8).view(1, 2, 2, 2)
    source = torch.tensor([-1, 0, 0, 7, 4, 5, 6, -1])
    found = Preprocess(source=source, mean=(0.0, 0.0), std=(1 / 255, 1 / 255))(images)
    assert found.round().flatten().tolist() == [0, 1, 1, 8, 5, 6, 7, 0]
    for wrong in (torch.tensor([8] * 8), torch.tensor([-2] * 8), torch.zeros(8), [0] * 8):
        with pytest.raises(ConfigError, match="source is"):
            Preprocess(source=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the source has 8 entries"):
        Preprocess(source=source)(images[:, :1])
