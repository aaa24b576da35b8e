"""A network that is changed after its conversion is refused at the next forward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from hypermask_fast import HyperMask
from hypermask_fast.inference.export import export_subnet
from tests.support.hypermask_cases import batch, make


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 6)
        self.bn = nn.BatchNorm1d(6)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.relu(self.bn(self.fc1(x))))


def another_layer(learner: HyperMask) -> None:
    learner.net.fc2 = nn.Linear(6, 3)


def no_layer(learner: HyperMask) -> None:
    learner.net.fc2 = nn.Identity()


def one_more_layer(learner: HyperMask) -> None:
    learner.net.fc2 = nn.Sequential(learner.net.fc2, nn.Linear(3, 3))


def its_own_forward(learner: HyperMask) -> None:
    fc1 = learner.net.fc1
    fc1.forward = lambda x: nn.functional.linear(x, fc1.weight, fc1.bias)


def norm_of_the_weight(learner: HyperMask) -> None:
    weight_norm(learner.net.fc1)


def parametrized(learner: HyperMask) -> None:
    parametrizations.spectral_norm(learner.net.fc1)


def pruned(learner: HyperMask) -> None:
    prune.l1_unstructured(learner.net.fc1, "weight", 3)


def synchronised(learner: HyperMask) -> None:
    nn.SyncBatchNorm.convert_sync_batchnorm(learner)


def another_network(learner: HyperMask) -> None:
    learner.net = Net()


def another_shape(learner: HyperMask) -> None:
    learner.net.fc1.weight = nn.Parameter(torch.ones(7, 5))


def without_bias(learner: HyperMask) -> None:
    learner.net.fc1.bias = None


CHANGES = [
    (another_layer, "fc2 is a Linear that came into the Net after it was converted"),
    (no_layer, "fc2 is a Identity that came into the Net"),
    (one_more_layer, "fc2 is a Sequential that came into the Net"),
    (its_own_forward, "fc1 has a forward of the instance"),
    (norm_of_the_weight, "fc1 has the parameters bias, weight_g, weight_v and was with weight"),
    (parametrized, "fc1 is a ParametrizedMaskedLinear and was a MaskedLinear"),
    (pruned, "fc1 has the parameters bias, weight_orig and was with weight, bias"),
    (synchronised, "bn is a SyncBatchNorm that came into the Net"),
    (another_network, "learner.net is another Net than the one that was converted"),
    (without_bias, r"fc1.bias is None and had \(6,\)"),
    (another_shape, r"fc1.weight has shape \(7, 5\) and had \(6, 5\)"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[c.__name__ for c, _ in CHANGES])
@pytest.mark.parametrize("bn", ["batch", "per_task"])
def test_a_change_is_refused(change: Callable[[HyperMask], None], message: str, bn: str) -> None:
    learner = make(Net(), bn=bn)
    x, y = batch(learner)
    learner.begin_task(0)
    learner.losses(x, y, 0)
    change(learner)
    for call in (lambda: learner(x, 1), lambda: learner.losses(x, y, 0), lambda: learner(x, 0)):
        with pytest.raises(RuntimeError, match=message):
            call()
    if change is not another_network:
        for call in (learner.task_weights, learner.masks, lambda t: export_subnet(learner, t)):
            with pytest.raises(RuntimeError, match=message):
                call(0)


def test_a_module_without_any_state_may_be_replaced() -> None:
    learner = make(Net())
    x, _ = batch(learner)
    before = learner(x, 0)
    learner.net.relu = nn.Sequential(nn.Identity(), nn.ReLU())
    assert torch.equal(learner(x, 0), before)
    learner.net.relu[1] = nn.LeakyReLU(0.5)
    assert not torch.equal(learner(x, 0), before)
    learner.net.fc2 = nn.Linear(6, 3)
    with pytest.raises(RuntimeError, match="fc2 is a Linear"):
        learner(x, 0)


def test_hooks_are_kept_and_run() -> None:
    learner = make(Net())
    x, _ = batch(learner)
    learner(x, 0)
    seen: list[torch.Tensor] = []
    learner.net.fc1.register_forward_hook(lambda *given: seen.append(given[-1]))
    learner(x, 0)
    assert len(seen) == 1
