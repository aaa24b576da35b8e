"""A head that steps in the backward pass: groups of their own for its bias, closures, wrappers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import Optimizer

from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.native import library
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.training.step import TrainingStep
from tests.support.step_cases import assert_equal, batch, learner_at, one_pass, run, state_of


def by_kind(learner: HyperMask, of_weights: Any, of_biases: Any) -> list[dict[str, Any]]:
    """Groups of matrices, and of biases and norms."""
    matrices = [p for p in learner.parameters() if p.dim() > 1]
    vectors = [p for p in learner.parameters() if p.dim() == 1]
    return [{"params": matrices, **of_weights}, {"params": vectors, **of_biases}]


def close(ours: HyperMask, theirs: HyperMask) -> None:
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9, msg=name)


RATE = torch.tensor(1e-2, dtype=torch.float64)
GROUPS = [
    pytest.param({"weight_decay": 0.1}, {}, id="no-decay-of-biases"),
    pytest.param({}, {"weight_decay": 0.1, "lr": 0.01}, id="decay-of-biases"),
    pytest.param(
        {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"weight_decay": 0.1}, id="decoupled"
    ),
    pytest.param({"betas": (0.5, 0.9)}, {"betas": (0.9, 0.99), "eps": 1e-3}, id="betas"),
    pytest.param({"maximize": True}, {}, id="maximize"),
    pytest.param({}, {"maximize": True, "foreach": False}, id="maximize-biases"),
    pytest.param({"lr": RATE}, {"lr": RATE / 10}, id="lr-tensors"),
    pytest.param({"lr": 0.0}, {}, id="only-biases"),
]


@pytest.mark.parametrize("passes", ["native", "pytorch"])
@pytest.mark.parametrize("options", [{}, {"targets": "frozen_head"}], ids=["full", "frozen"])
@pytest.mark.parametrize(("of_weights", "of_biases"), GROUPS)
def test_weights_and_biases_have_groups_of_their_own(
    of_weights: dict[str, Any],
    of_biases: dict[str, Any],
    options: dict[str, Any],
    passes: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if passes == "pytorch":
        monkeypatch.setattr(library, "load", lambda: None)
    ours, theirs = learner_at(2, **options), learner_at(2, **options)
    found = []
    for learner, kind in ((ours, one_pass_kind), (theirs, torch.optim.Adam)):
        # Schedules write to rates that are tensors.
        optimizer = kind(by_kind(learner, *copy.deepcopy((of_weights, of_biases))))
        rates = [LambdaLR(optimizer, [lambda n: 0.9**n, lambda n: 1 / (1 + n)])]
        step = TrainingStep(learner, optimizer)
        for seed in range(10):
            step(*batch(seed), 2)
            for rate in rates:
                rate.step()
        found.append(optimizer)
    close(ours, theirs)
    bias = ours.hypernetwork.head.bias
    twin = theirs.hypernetwork.head.bias
    assert found[0].state[bias].keys() == found[1].state[twin].keys()
    for name, value in found[1].state[twin].items():
        torch.testing.assert_close(found[0].state[bias][name], value, check_dtype=False)
    assert bias.grad is None


def one_pass_kind(groups: Any) -> FactoredAdam:
    return FactoredAdam(groups, step_in_backward=True)


@pytest.mark.parametrize("capturable", [False, True], ids=["looked-at", "on-the-device"])
def test_a_gradient_that_is_not_finite_moves_no_bias_of_another_group(capturable: bool) -> None:
    learner, undisturbed = learner_at(1), learner_at(1)
    options = {"weight_decay": 0.1}, {"lr": 0.01}
    optimizers = [
        FactoredAdam(by_kind(each, *options), step_in_backward=True, capturable=capturable)
        for each in (learner, undisturbed)
    ]
    bad, y = batch(1)
    bad[0, 0] = torch.nan
    for good in (0, 2):
        TrainingStep(learner, optimizers[0])(bad, y, 1)
        for each, optimizer in zip((learner, undisturbed), optimizers, strict=True):
            TrainingStep(each, optimizer)(*batch(good), 1)
        states = [state_of(*pair) for pair in zip((learner, undisturbed), optimizers, strict=True)]
        assert_equal(*states)


@pytest.mark.parametrize("bias", ["frozen", "of-another", "of-none"])
def test_a_bias_that_the_optimizer_does_not_step(bias: str) -> None:
    ours, theirs = learner_at(2), learner_at(2)
    for learner in (ours, theirs):
        head_bias = learner.hypernetwork.head.bias
        head_bias.requires_grad_(bias != "frozen")
        rest = [p for p in learner.parameters() if p is not head_bias or bias == "frozen"]
        adam: Optimizer = torch.optim.Adam(rest)
        if learner is ours:
            adam = FactoredAdam(rest, step_in_backward=True)
        optimizers = [adam]
        if bias == "of-another":
            optimizers.append(torch.optim.SGD([head_bias], 0.1, momentum=0.9))
        before = head_bias.detach().clone()
        for seed in range(5):
            learner.zero_grad()
            learner.losses(*batch(seed), 2, optimizer=adam).total.backward()
            for optimizer in optimizers:
                optimizer.step()
        assert torch.equal(head_bias, before) == (bias != "of-another")
    close(ours, theirs)
    if bias == "of-none":
        torch.testing.assert_close(
            ours.hypernetwork.head.bias.grad, theirs.hypernetwork.head.bias.grad
        )


def closure_of(
    learner: HyperMask, optimizer: Optimizer, seed: int, given: Any = None
) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        losses = learner.losses(*batch(seed), 1, optimizer=given or optimizer)
        optimizer.zero_grad()
        losses.total.backward()
        return losses.total

    return closure


def test_a_closure_may_do_the_backward_pass() -> None:
    ours, theirs = learner_at(1), learner_at(1)
    optimizer, reference = one_pass(ours), one_pass(theirs)
    for seed in range(4):
        total = optimizer.step(closure_of(ours, optimizer, seed))
        losses = TrainingStep(theirs, reference)(*batch(seed), 1)
        assert torch.equal(total, losses.total)
    optimizer.zero_grad()
    assert_equal(state_of(ours, optimizer), state_of(theirs, reference))


def test_a_closure_that_is_not_finite_returns_its_loss_and_changes_nothing() -> None:
    learner = learner_at(1)
    optimizer = one_pass(learner)
    optimizer.step(closure_of(learner, optimizer, 0))
    before = state_of(learner, optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = learner.losses(batch(1)[0] * torch.nan, batch(1)[1], 1, optimizer=optimizer).total
        total.backward()
        return total

    assert optimizer.step(closure).isnan()
    assert_equal(state_of(learner, optimizer), before)


def test_a_closure_after_a_backward_pass_that_waits_for_its_step_is_refused() -> None:
    learner = learner_at(1)
    optimizer = one_pass(learner)
    closure_of(learner, optimizer, 0)()
    with pytest.raises(RuntimeError, match=r"second backward pass came before step\(\)"):
        optimizer.step(closure_of(learner, optimizer, 1))


class Wrapper:
    """As some training loops wrap an optimizer: an instance of its class that forwards to it.

    Its own ``step`` always calls the optimizer's with a closure.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.wrapped = optimizer
        self.__class__ = type("Wrapped", (type(self), type(optimizer)), {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def step(self, closure: Callable[[], Any] = lambda: None) -> Any:
        return self.wrapped.step(closure=closure)


@pytest.mark.parametrize("automatic", [False, True], ids=["manual", "automatic"])
def test_a_wrapper_that_forwards_to_the_optimizer(automatic: bool) -> None:
    ours, theirs = learner_at(1), learner_at(1)
    optimizer = one_pass(ours)
    wrapper: Any = Wrapper(optimizer)
    assert isinstance(wrapper, FactoredAdam)
    for seed in range(4):
        closure = closure_of(ours, wrapper, seed)
        if automatic:
            wrapper.step(closure)
        else:
            closure()
            wrapper.step()
    run_four(theirs)
    close(ours, theirs)
    with pytest.raises(RuntimeError, match="no backward pass updated a head"):
        wrapper.step()


def run_four(learner: HyperMask) -> None:
    step = TrainingStep(learner, torch.optim.Adam(learner.parameters()))
    for seed in range(4):
        step(*batch(seed), 1)


@pytest.mark.parametrize("options", [{"maximize": True}, {"lr": RATE}], ids=["maximize", "lr"])
@pytest.mark.parametrize("decoupled", [False, True])
def test_options_of_the_whole_head(options: dict[str, Any], decoupled: bool) -> None:
    ours, theirs = learner_at(1), learner_at(1)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    run(ours, one_pass(ours, weight_decay=0.1, decoupled_weight_decay=decoupled, **options), 1)
    run(theirs, kind(theirs.parameters(), **{"lr": 1e-3, "weight_decay": 0.1, **options}), 1)
    close(ours, theirs)
