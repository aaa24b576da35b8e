"""The training step that updates the head in its backward pass, against the ordinary one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hypermask_fast.autograd import HeadUpdate
from hypermask_fast.factored import FactoredGrad
from hypermask_fast.methods.base import Losses
from hypermask_fast.methods.hypermask import HyperMask
from hypermask_fast.networks import MLP
from hypermask_fast.optim import FactoredAdam
from hypermask_fast.training.step import TrainingStep

CLASSES = 3


def learner_at(task: int, **options: object) -> HyperMask:
    """A float64 learner whose current task has ``task`` earlier ones, with residuals."""
    torch.manual_seed(1)
    net = MLP(6, (5,), CLASSES).double()
    learner = HyperMask(
        net,
        embedding_dim=3,
        hidden=(4,),
        sparsity=30.0,
        beta=0.5,
        capacity=5,
        **options,  # type: ignore[arg-type]
    )
    for j in range(task + 1):
        learner.add_task()
        learner.begin_task(j)
        if j < task:
            learner.end_task()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return learner


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(CLASSES, (8,), generator=generator)


def run(learner: HyperMask, optimizer: torch.optim.Optimizer, task: int) -> list[Losses]:
    step = TrainingStep(learner, optimizer)
    return [step(*batch(seed), task) for seed in range(20)]


@pytest.mark.parametrize("task", [0, 1, 3])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_one_pass_takes_the_steps_of_torch_adam(task: int, weight_decay: float) -> None:
    ours, theirs = learner_at(task), learner_at(task)
    options = {"lr": 1e-3, "weight_decay": weight_decay}
    a = run(ours, FactoredAdam(ours.parameters(), **options), task)  # type: ignore[arg-type]
    b = run(theirs, torch.optim.Adam(theirs.parameters(), **options), task)  # type: ignore[arg-type]
    for left, right in zip(a, b, strict=True):
        for name in ("total", "task", "output_reg", "weight_reg"):
            x, y = getattr(left, name).item(), getattr(right, name).item()
            assert x == pytest.approx(y, rel=1e-9, abs=1e-12), name
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9, msg=name)


def test_the_head_has_no_gradient_left_and_the_optimizer_counts_one_step() -> None:
    learner = learner_at(1)
    optimizer = FactoredAdam(learner.parameters())
    TrainingStep(learner, optimizer)(*batch(0), 1)
    head = learner.hypernetwork.head
    assert head.weight.grad is None
    assert head.bias.grad is None
    assert [int(s["step"]) for s in optimizer.state.values()] == [1] * len(optimizer.state)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    learner = learner_at(1)
    optimizer = FactoredAdam(learner.parameters())
    step = TrainingStep(learner, optimizer)
    step(*batch(0), 1)
    before = {name: p.clone() for name, p in learner.named_parameters()}
    x, y = batch(1)
    x[0, 0] = torch.nan
    losses = step(x, y, 1)
    assert losses.total.isnan()
    for name, p in learner.named_parameters():
        assert torch.equal(p, before[name]), name


def test_an_ordinary_loop_leaves_a_gradient_in_factors() -> None:
    learner = learner_at(2)
    learner.losses(*batch(0), 2).total.backward()
    grad = learner.hypernetwork.head.weight.grad
    assert isinstance(grad, FactoredGrad)
    assert grad.is_factored
    assert grad.dz.shape[0] == 3


def test_a_chunked_head_takes_the_ordinary_step() -> None:
    options = {"head": "chunked", "chunk_size": 7, "chunk_embedding_dim": 2}
    ours, theirs = learner_at(2, **options), learner_at(2, **options)
    run(ours, FactoredAdam(ours.parameters()), 2)
    run(theirs, torch.optim.Adam(theirs.parameters()), 2)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9, msg=name)
    update = HeadUpdate(FactoredAdam(ours.parameters()))
    with (
        pytest.raises(RuntimeError, match=r"ChunkedHypernetwork .* cannot be updated"),
        ours.hypernetwork.updating(update),
    ):
        pass
