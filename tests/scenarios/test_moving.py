"""Tensors exist once on each device."""

from __future__ import annotations

import gc

import pytest
import torch

from hypermask_fast.scenarios import Preprocess, moving, permuted, split
from tests.support.scenario_cases import make_dataset


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda dataset: permuted(dataset, 4, validation=5), id="permuted"),
        pytest.param(lambda dataset: split(dataset, 2, validation=5, crop=1), id="split"),
    ],
)
def test_to_moves_shared_images_once(build):
    scenario = build(make_dataset())
    moved = scenario.to("meta")
    assert [task.device.type for task in moved] == ["meta"] * len(scenario)
    assert len({id(task.train.source) for task in moved}) == 1
    assert moved[0].train.source is moved[0].validation.source
    assert moved[0].train_preprocess.mean is None
    # A task that is moved alone finds the images that the others brought.
    assert scenario[1].to("meta").train.source is moved[0].train.source
    for task in moved:
        for part in (task.train, task.validation, task.test):
            assert {part.index.device.type, part.labels.device.type} == {"meta"}
    assert scenario[0].to("cpu").train is scenario[0].train


def test_copies_are_freed_with_their_last_user():
    scenario = permuted(make_dataset(), 2)
    source = scenario[0].train.source
    moved = scenario.to("meta")
    assert len(moving._copies[source]) == 1
    del moved
    gc.collect()
    assert len(moving._copies[source]) == 0


def test_preprocess_moves_its_tensors():
    preprocess = Preprocess(
        pad=1, crop=2, flip=True, permutation=torch.arange(4), mean=(0.5,), std=(0.5,)
    )
    moved = preprocess.to("meta")
    assert {t.device.type for t in (moved.permutation, moved.mean, moved.std)} == {"meta"}
    assert (moved.pad, moved.crop, moved.flip) == (1, 2, True)
    assert preprocess.mean.device.type == "cpu"
