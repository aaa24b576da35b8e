"""What images, data sets and splits accept."""

from __future__ import annotations

import pytest
import torch

from hypermask_fast.errors import DataError
from hypermask_fast.scenarios import ImageDataset, ImageSet, Split
from tests.support.scenario_cases import make_dataset


def test_split_checks_its_tensors():
    source = make_dataset().train
    with pytest.raises(ValueError, match="both must be"):
        Split(source, torch.arange(3), torch.arange(4))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        pytest.param(torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), id="float-images"),
        pytest.param(torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), id="no-channels"),
        pytest.param(torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2).int(), id="int32-labels"),
        pytest.param(torch.zeros(2, 1, 4, 4).byte(), torch.zeros(3).long(), id="counts"),
    ],
)
def test_image_set_refuses_tensors(images, labels):
    with pytest.raises(ValueError, match="give torch"):
        ImageSet(images, labels)


@pytest.mark.parametrize(
    ("test_images", "says"),
    [
        pytest.param(torch.zeros(2, 1, 5, 5).byte(), "must be equal", id="shapes"),
        pytest.param(torch.zeros(0, 1, 4, 4).byte(), "no test images", id="empty"),
    ],
)
def test_image_dataset_refuses_parts(test_images, says):
    train = ImageSet(torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2).long())
    test = ImageSet(test_images, torch.zeros(len(test_images)).long())
    with pytest.raises(DataError, match=says):
        ImageDataset("made", train, test, ("a",))
