"""A network that was trained before, whose masks start open."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import hypermask_fast as hmf
from hypermask_fast.errors import ConfigError
from hypermask_fast.methods.hypermask.settings import HyperMaskSettings
from hypermask_fast.scenarios import Task

MARGIN = 1.0
"""Percent of accuracy that open masks may cost."""


@pytest.fixture(scope="module")
def digits() -> Task:
    return hmf.scenarios.permuted_digits(tasks=1, identity_first=True)[0]


@pytest.fixture(scope="module")
def trained(digits: Task) -> nn.Module:
    """A network with batch norm that was trained on digits by PyTorch alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 10)
        )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    stream = digits.stream(64)
    for step in range(120):
        x, y = stream.batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


def batch_of(digits: Task) -> tuple[Tensor, Tensor]:
    return next(digits.evaluation_batches("test", 1000))


def accuracy(logits: Tensor, y: Tensor) -> float:
    return 100 * float((logits.argmax(1) == y).float().mean())


def opened(net: nn.Module, **options: object) -> hmf.HyperMask:
    torch.manual_seed(1)
    options = {"mask_init": "open", **options}
    learner = hmf.HyperMask(copy.deepcopy(net), embedding_dim=8, hidden=(20,), **options)
    learner.add_task("digits", range(10))
    learner.add_task("others", range(10))
    return learner.eval()


@pytest.mark.parametrize("head", ["full", "chunked"])
def test_the_first_forward_is_nearly_the_given_network(
    trained: nn.Module, digits: Task, head: str
) -> None:
    x, y = batch_of(digits)
    learner = opened(trained, head=head, chunk_size=100)
    plain = trained(x).detach()
    assert accuracy(plain, y) > 90
    for task in (0, 1):  # tasks that are added later start open too
        logits = learner(x, task).detach()
        masks = learner.masks(task)
        assert min(float(mask.min()) for mask in masks.values()) >= 0.99
        assert abs(accuracy(logits, y) - accuracy(plain, y)) <= MARGIN
        # Two layers of weights that are at most 1 % smaller; normalisation divides by statistics
        # of the given network.
        assert float((logits - plain).abs().max()) < 0.03 * float(plain.abs().max())
    published = opened(trained, mask_init="published")(x, 0)
    assert accuracy(published, y) < accuracy(plain, y) - 20


@pytest.mark.parametrize("sparsity", [30.0, 60.0])
def test_the_smallest_weights_are_removed_first(
    trained: nn.Module, digits: Task, sparsity: float
) -> None:
    x, y = batch_of(digits)
    learner = opened(trained, sparsity=sparsity)
    logits = learner(x, 0)
    pruned = copy.deepcopy(trained)
    for name, mask in learner.masks(0).items():
        weight = pruned.get_parameter(name).detach()
        small = weight.abs() <= weight.abs().flatten().quantile(sparsity / 100)
        removed = mask == 0
        assert float(removed.float().mean()) == pytest.approx(sparsity / 100, abs=1 / 50)
        # The untrained embedding moves z by 0.02, of the 1.0 between the smallest and the largest.
        assert float((removed != small).float().mean()) < 0.05
        weight[small] = 0
    assert abs(accuracy(logits, y) - accuracy(pruned(x), y)) <= 2 * MARGIN


def test_weights_and_statistics_are_the_given_ones(trained: nn.Module) -> None:
    learner = opened(trained)
    for name, value in trained.state_dict().items():
        assert torch.equal(learner.net.state_dict()[name], value), name
    table = dict(learner.norms.named_buffers())
    means = next(value for name, value in table.items() if name.endswith("running_mean"))
    torch.testing.assert_close(means, trained[2].running_mean.expand_as(means), rtol=0, atol=0)


def test_it_still_learns(trained: nn.Module, digits: Task) -> None:
    x, y = batch_of(digits)
    # Labels in another order, which the given network gets wrong.
    learner = opened(trained, sparsity=30.0)
    learner.begin_task(0, steps=80)
    optimizer = hmf.FactoredAdam(learner.parameters(), lr=0.01)
    learner.train()
    for _ in range(80):
        optimizer.zero_grad()
        learner.losses(x, (y + 1) % 10, 0).total.backward()
        optimizer.step()
    learner.end_task()
    learner.eval()
    assert accuracy(learner(x, 0), (y + 1) % 10) > 90


def test_the_published_start_is_what_it_was() -> None:
    def made(**options: object) -> Tensor:
        torch.manual_seed(3)
        return hmf.HyperMask(nn.Linear(3, 2), **options).hypernetwork.head.bias

    assert torch.equal(made(), made(mask_init="published"))
    assert not torch.equal(made(), made(mask_init="open"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"init": "hyperfan"}, "starts the head itself, as init='hyperfan' does"),
        ({"head": "chunked", "sparsity": 30.0}, "whose chunks share a bias; use head='full'"),
    ],
)
def test_what_does_not_go_together(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        HyperMaskSettings(mask_init="open", **options)  # type: ignore[arg-type]
