"""Normalisation layers with and without a state, held against torch's functions."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.layers.norms import TASK_NORMS, NormState

LAYERS = [
    pytest.param(lambda: nn.BatchNorm1d(4), id="batch-1d"),
    pytest.param(lambda: nn.BatchNorm2d(4), id="batch-2d"),
    pytest.param(lambda: nn.LayerNorm((4, 3, 3)), id="layer"),
    pytest.param(lambda: nn.GroupNorm(2, 4), id="group"),
]


def batch_for(layer: nn.Module) -> Tensor:
    return 2 * torch.randn((5, 4) if isinstance(layer, nn.BatchNorm1d) else (5, 4, 3, 3)) + 1


def converted(layer: nn.Module) -> nn.Module:
    twin = copy.deepcopy(layer)
    twin.__class__ = TASK_NORMS[type(layer)]
    return twin


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_without_a_state_it_is_the_plain_layer(make: type[nn.Module], training: bool) -> None:
    layer = make().train(training)
    twin, x = converted(layer), batch_for(layer)
    assert torch.equal(twin(x), layer(x))
    for key, value in layer.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value), key


@pytest.mark.parametrize("make", LAYERS)
def test_a_state_stands_in_for_what_the_layer_has(make: type[nn.Module]) -> None:
    layer = make().eval()
    twin, x = converted(layer), batch_for(layer)
    own = {key: value.clone() for key, value in twin.state_dict().items()}
    state = {key: torch.rand_like(v) + 0.5 for key, v in own.items() if key[0] in "wbr"}
    layer.load_state_dict({**own, **state})
    twin.active = NormState(**state)
    assert torch.equal(twin(x), layer(x))
    assert all(torch.equal(twin.state_dict()[key], value) for key, value in own.items())


@pytest.mark.parametrize("learning", [True, False])
def test_statistics_of_a_state_move_only_while_learning(learning: bool) -> None:
    twin = converted(nn.BatchNorm1d(4, affine=False)).train()
    mean, var = torch.zeros(4), torch.ones(4)
    twin.active = NormState(None, None, mean, var, learning)
    x = batch_for(twin)
    normalised = F.batch_norm(x, None, None, training=True) if learning else x / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(twin(x), normalised)
    if learning:
        torch.testing.assert_close(mean, 0.1 * x.mean(0))
        torch.testing.assert_close(var, 0.9 + 0.1 * x.var(0))
    else:
        assert torch.equal(mean, torch.zeros(4))
        assert torch.equal(var, torch.ones(4))
