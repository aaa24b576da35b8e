"""ExSSNeT's weights in training, in states, copies and networks that were frozen before."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypermask_fast as hmf
from hypermask_fast.methods.exssnet.learner import MASK, WEIGHTS

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def make(**options: Any) -> hmf.ExSSNeT:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2))
    learner = hmf.ExSSNeT(net, density=0.5, **options)
    learner.add_task("first", [0, 1])
    return learner.train()


def train(learner: hmf.ExSSNeT, steps: int = 3) -> None:
    groups = learner.parameter_groups(learner.phase)
    optimizer = torch.optim.Adam([p for g in groups for p in g.params], lr=0.05)
    task = learner.current
    assert task is not None
    for _ in range(steps):
        learner.step(X, Y, task, {"main": optimizer})


def in_weights() -> hmf.ExSSNeT:
    """A learner some steps into the phase of its weights."""
    learner = make()
    learner.begin_task(0, steps=10)
    train(learner)
    learner.begin_phase(WEIGHTS)
    train(learner)
    return learner


@torch.no_grad()
def outputs(learner: hmf.ExSSNeT) -> Tensor:
    return learner(X, 0)[:, :2]


class Outer(nn.Module):
    """A module that holds a learner, as Lightning's do."""

    def __init__(self, learner: hmf.ExSSNeT) -> None:
        super().__init__()
        self.learner = learner


def test_a_module_with_a_learner_loads_its_weights() -> None:
    outer = Outer(in_weights())
    saved = copy.deepcopy(outer.state_dict())
    expected = outputs(outer.learner)
    fresh = Outer(make())
    fresh.load_state_dict(saved)
    assert fresh.learner.phase == WEIGHTS
    assert torch.equal(outputs(fresh.learner), expected)
    train(outer.learner)
    assert not torch.equal(outputs(outer.learner), expected)
    outer.load_state_dict(saved)
    assert torch.equal(outputs(outer.learner), expected)


def test_a_state_of_the_masks_phase_trains_scores_again() -> None:
    learner = make()
    learner.begin_task(0, steps=10)
    train(learner)
    saved, expected = copy.deepcopy(learner.state_dict()), outputs(learner)
    learner.begin_phase(WEIGHTS)
    train(learner)
    learner.load_state_dict(saved)
    assert learner.phase == MASK
    assert torch.equal(outputs(learner), expected)
    before = learner.scores.detach().clone()
    train(learner)
    assert not torch.equal(learner.scores, before)
    assert torch.equal(learner.net[0].weight, saved["net.0.weight"])  # type: ignore[index]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_its_own_weights(copied: Any) -> None:
    learner = in_weights()
    twin = copied(learner)
    assert torch.equal(outputs(twin), outputs(learner))
    before = outputs(learner)
    optimizer = torch.optim.Adam([twin.edited.values], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        twin.losses(X, Y, 0).total.backward()
        optimizer.step()
    fresh = make()
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(outputs(fresh), outputs(twin))
    assert not torch.equal(outputs(twin), before)
    assert torch.equal(outputs(learner), before)


def test_a_weight_that_was_frozen_stays() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2))
    net[0].requires_grad_(False)
    before = [net[i].weight.detach().clone() for i in (0, 2)]
    learner = hmf.ExSSNeT(net, density=0.5, weights="as_is").train()
    learner.begin_task(learner.add_task("first", [0, 1]), steps=10)
    learner.begin_phase(WEIGHTS)
    assert not learner.editable()["0.weight"].any()
    train(learner)
    learner.end_task()
    assert torch.equal(net[0].weight, before[0])
    assert not torch.equal(net[2].weight, before[1])
