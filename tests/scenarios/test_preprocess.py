"""Batches of images become network inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hypermask_fast.counters import AUGMENT
from hypermask_fast.errors import ConfigError
from hypermask_fast.scenarios import Preprocess
from tests.support.counter_reference import randint_reference
from tests.support.scenario_cases import transform_reference


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        pytest.param((1, 6, 5), {}, id="scale"),
        pytest.param((1, 6, 5), {"pad": 2}, id="pad"),
        pytest.param((3, 6, 5), {"crop": 2}, id="crop"),
        pytest.param((3, 6, 5), {"flip": True}, id="flip"),
        pytest.param((3, 6, 5), {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.1)}, id="normalise"),
        pytest.param((2, 4, 4), {"pad": 1, "permutation": True}, id="pad-permute"),
        pytest.param(
            (3, 6, 5),
            {"crop": 2, "flip": True, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.1)},
            id="published-cifar",
        ),
        pytest.param(
            (1, 4, 4),
            {"pad": 1, "crop": 1, "flip": True, "permutation": True, "mean": (0.1,), "std": (2,)},
            id="everything",
        ),
    ],
)
def test_preprocess_agrees_with_numpy(shape, options, device):
    images = torch.randint(0, 256, (40, *shape)).to(torch.uint8)
    options = dict(options)
    if options.pop("permutation", False):
        side = 2 * options["pad"]
        pixels = shape[0] * (shape[1] + side) * (shape[2] + side)
        options["permutation"] = torch.randperm(pixels)
    preprocess = Preprocess(**options)
    draws = preprocess.draws(1, 2, 3, torch.arange(40))
    x = preprocess.to(device)(images.to(device), draws.to(device)).cpu()
    plain = {name: value for name, value in options.items() if name != "flip"}
    if "permutation" in plain:
        plain["permutation"] = plain["permutation"].numpy()
    expected = transform_reference(images.numpy(), draws.numpy(), **plain)
    assert x.dtype == torch.float32
    assert tuple(x.shape[1:]) == preprocess.output_shape(shape)
    # Division and subtraction are rounded the same way everywhere on a CPU; a GPU may use
    # a reciprocal, one unit in the last place away.
    assert np.allclose(x.numpy(), expected, rtol=0 if device.type == "cpu" else 3e-7, atol=0)


def test_draws_cover_their_range_and_belong_to_samples():
    preprocess = Preprocess(crop=4, flip=True)
    draws = preprocess.draws(0, 0, 5, torch.arange(2000))
    assert [draws[:, i].unique().tolist() for i in range(3)] == [[*range(9)], [*range(9)], [0, 1]]
    for purpose, high in enumerate((9, 9, 2)):
        expected = randint_reference(high, 0, 0, AUGMENT, purpose, 5, np.arange(2000))
        assert np.array_equal(draws[:, purpose].numpy(), expected)
    correlation = np.corrcoef(draws.numpy().T)
    # Standard error 1/sqrt(2000): independent columns stay within 4 of it.
    assert np.abs(correlation - np.eye(3)).max() < 4 / 2000**0.5


def test_draws_take_the_step_as_a_tensor():
    preprocess = Preprocess(crop=2, flip=True)
    position = torch.arange(7)
    assert torch.equal(
        preprocess.draws(1, 2, torch.tensor(9), position), preprocess.draws(1, 2, 9, position)
    )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"pad": -1}, id="negative-pad"),
        pytest.param({"crop": -1}, id="negative-crop"),
        pytest.param({"mean": (0.5,)}, id="mean-without-std"),
        pytest.param({"std": (0.5,)}, id="std-without-mean"),
        pytest.param({"mean": (0.5,), "std": (0.0,)}, id="zero-std"),
        pytest.param({"mean": (0.5,), "std": (0.5, 0.5)}, id="lengths-differ"),
    ],
)
def test_preprocess_refuses_settings(options):
    with pytest.raises(ConfigError):
        Preprocess(**options)


@pytest.mark.parametrize(
    ("options", "images", "error"),
    [
        pytest.param({}, torch.zeros(1, 1, 2, 2), TypeError, id="float-images"),
        pytest.param({"flip": True}, None, ValueError, id="no-draws"),
        pytest.param({"permutation": torch.arange(5)}, None, ValueError, id="permutation-length"),
        pytest.param({"mean": (0, 0), "std": (1, 1)}, None, ValueError, id="channels"),
    ],
)
def test_preprocess_refuses_images(options, images, error):
    images = torch.zeros(1, 1, 2, 2, dtype=torch.uint8) if images is None else images
    with pytest.raises(error):
        Preprocess(**options)(images)
