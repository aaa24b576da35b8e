"""Derivatives of a learner by torch.func, in forward mode and of second order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

from hypermask_fast.backends.choice import backend
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.optim.factored_adam import FactoredAdam
from tests.support.hypermask_cases import batch, make, mixed_net, perturb, train

BACKENDS = pytest.mark.parametrize("name", ["auto", "reference"])


def learning(**options: Any) -> HyperMask:
    """A float64 learner in its second task, away from what it keeps of the first."""
    learner = make(sparsity=30.0, beta=0.5, lam=0.1, **options).double()
    train(learner, 0)
    learner.begin_task(1)
    perturb(learner)
    return learner


class _LossesOf(nn.Module):
    def __init__(self, learner: HyperMask) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.learner.losses(x, y, 1).total


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def detached(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in parameters.items()}


def loop(
    outputs: Callable[[int], Tensor], rows: int, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients of each row's output, by one autograd.grad for each."""
    values = list(parameters.values())
    each = [
        torch.autograd.grad(outputs(i), values, allow_unused=True, materialize_grads=True)
        for i in range(rows)
    ]
    stacked = [
        torch.stack([g.to_dense() if hasattr(g, "is_factored") else g for g in parts])
        for parts in zip(*each, strict=True)
    ]
    return dict(zip(parameters, stacked, strict=True))


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)


@BACKENDS
@pytest.mark.parametrize("task", [0, 1])
def test_gradients_of_each_rows_logits(name: str, task: int) -> None:
    learner = learning()
    x, _ = batch(learner, 3)

    def of_row(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(learner, parameters, (row[None], task)).square().sum()

    parameters = trained(learner)
    with backend(name):
        found = vmap(grad(of_row), (None, 0))(detached(parameters), x)
    wanted = loop(lambda i: learner(x[i : i + 1], task).square().sum(), len(x), parameters)
    assert_same(found, wanted)


@BACKENDS
@pytest.mark.parametrize("targets", ["full", "frozen_head"])
def test_gradients_of_each_rows_losses(name: str, targets: str) -> None:
    learner = learning(targets=targets)
    x, y = batch(learner, 3)
    module = _LossesOf(learner)

    def of_row(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional_call(module, parameters, (x[None], y[None]))

    parameters, taken = trained(module), learner.steps_taken
    with backend(name):
        found = vmap(grad(of_row), (None, 0, 0))(detached(parameters), x, y)
    assert learner.steps_taken == taken + 1
    wanted = loop(lambda i: module(x[i : i + 1], y[i : i + 1]), len(x), parameters)
    assert_same(found, wanted)


@BACKENDS
def test_jacobians_with_respect_to_inputs(name: str) -> None:
    learner = learning()
    x, _ = batch(learner, 2)
    wanted = torch.autograd.functional.jacobian(lambda x: learner(x, 1), x)
    assert isinstance(wanted, Tensor)
    with backend(name):
        for jacobian in (jacrev, jacfwd):
            torch.testing.assert_close(jacobian(lambda x: learner(x, 1))(x), wanted)
        _, tangent = jvp(lambda x: learner(x, 1), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, wanted.sum((2, 3)))


@BACKENDS
def test_forward_mode_with_respect_to_an_embedding(name: str) -> None:
    learner = learning()
    x, _ = batch(learner, 2)
    embeddings = learner.hypernetwork.embeddings.detach()

    def outputs(embeddings: Tensor) -> Tensor:
        return functional_call(learner, {"hypernetwork.embeddings": embeddings}, (x, 1))

    wanted = torch.autograd.functional.jacobian(outputs, embeddings)
    assert isinstance(wanted, Tensor)
    with backend(name), forward_ad.dual_level():
        dual = forward_ad.make_dual(embeddings, torch.ones_like(embeddings))
        tangent = forward_ad.unpack_dual(outputs(dual)).tangent
    assert tangent is not None
    torch.testing.assert_close(tangent, wanted.sum((2, 3)))


@pytest.mark.parametrize("targets", ["full", "frozen_head"])
@pytest.mark.parametrize("with_norms", [False, True])
def test_second_derivatives_of_losses_equal_the_references(targets: str, with_norms: bool) -> None:
    learner = learning(
        net=mixed_net() if with_norms else None, targets=targets, dropout="off", bn="batch"
    )
    x, y = batch(learner)
    parameters = list(trained(learner).values())

    def second() -> list[Tensor]:
        options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        total = learner.losses(x, y, 1).total
        first = torch.autograd.grad(total, parameters, create_graph=True, **options)
        norm = torch.stack([g.square().sum() for g in first]).sum()
        return [*first, *torch.autograd.grad(norm, parameters, **options)]

    found = second()
    with backend("reference"):
        wanted = second()
    assert any(bool(part.any()) for part in wanted[len(parameters) :])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_a_batch_of_gradients_at_once() -> None:
    learner = learning()
    x, _ = batch(learner, 2)
    outputs, parameters = learner(x, 1).sum(0), trained(learner)
    values = list(parameters.values())
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad(
        outputs, values, torch.eye(3).double(), is_grads_batched=True, retain_graph=True, **options
    )
    wanted = loop(lambda i: learner(x, 1).sum(0)[i], 3, parameters)
    assert_same(dict(zip(parameters, found, strict=True)), wanted)


def test_an_update_in_the_backward_pass_has_no_second_derivative() -> None:
    learner = learning()
    optimizer = FactoredAdam(learner.parameters(), step_in_backward=True)
    total = learner.losses(*batch(learner), 1, optimizer=optimizer).total
    before = learner.hypernetwork.head.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"create_graph=True .*; use an optimizer without"):
        torch.autograd.grad(total, [learner.hypernetwork.embeddings], create_graph=True)
    assert torch.equal(learner.hypernetwork.head.weight, before)


def test_an_update_in_the_backward_pass_is_not_transformed() -> None:
    learner = learning()
    optimizer = FactoredAdam(learner.parameters(), step_in_backward=True)
    x, y = batch(learner)
    with pytest.raises(RuntimeError, match=r"torch\.func or forward-mode .*; use an optimizer"):
        grad(lambda x: learner.losses(x, y, 1, optimizer=optimizer).total)(x)


def test_a_transformed_task_id_is_refused() -> None:
    learner = learning()
    x, _ = batch(learner, 2)
    for ids in (torch.tensor([0, 1]), torch.tensor([[0, 1]])):
        with pytest.raises(ValueError, match="values cannot be read here; give an id as an int"):
            vmap(lambda task: learner(x, task))(ids)
