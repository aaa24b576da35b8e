"""What updates a head in the backward pass, and what does not: losses, gradients, copies, steps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.optim.factored_grad import FactoredGrad
from hypermask_fast.training.step import TrainingStep
from tests.support.step_cases import assert_equal, batch, learner_at, one_pass, state_of

ANEW = r"hypernetwork changed since .* call losses\(\) anew"
KEPT = [
    pytest.param(0, {}, id="no-earlier"),
    pytest.param(2, {}, id="full"),
    pytest.param(2, {"targets": "frozen_head"}, id="frozen"),
    pytest.param(3, {"regularized_tasks": 1}, id="sample"),
]


def values(learner: HyperMask) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner.named_parameters()}


def dense(grad: Tensor | None) -> Tensor:
    assert grad is not None
    return grad.to_dense()


def trunk_of(learner: HyperMask) -> list[nn.Parameter]:
    return [learner.hypernetwork.embeddings, *learner.hypernetwork.trunk.parameters()]


@pytest.mark.parametrize("of", ["trunk", "net", "head", "all"])
@pytest.mark.parametrize(("task", "options"), KEPT)
def test_autograd_grad_gives_gradients_and_updates_nothing(
    task: int, options: dict[str, Any], of: str
) -> None:
    ours, theirs = learner_at(task, **options), learner_at(task, **options)
    optimizer = one_pass(ours)
    found = []
    for learner, given in ((ours, optimizer), (theirs, None)):
        parameters = {
            "trunk": trunk_of(learner),
            "net": [p for p in learner.net.parameters() if p.requires_grad],
            "head": list(learner.hypernetwork.head.parameters()),
            "all": list(learner.parameters()),
        }[of]
        before = values(learner)
        losses = learner.losses(*batch(0), task, optimizer=given)
        grads = torch.autograd.grad(losses.total, parameters, retain_graph=True)
        assert_equal(values(learner), before)
        assert all(p.grad is None for p in learner.parameters())
        found.append((losses, grads))
    for ours_, exact in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(dense(ours_), dense(exact), rtol=1e-9, atol=1e-12)
    # The graph is still there for the update.
    assert not optimizer.state
    reference = torch.optim.Adam(theirs.parameters())
    for (losses, _), each in zip(found, (optimizer, reference), strict=True):
        losses.total.backward()
        each.step()
    torch.testing.assert_close(found[0][0].detached(), found[1][0].detached())
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("part", ["trunk", "weight", "bias"])
def test_a_backward_pass_that_leaves_out_the_head_updates_nothing(part: str) -> None:
    ours, theirs = learner_at(2), learner_at(2)
    optimizer = one_pass(ours)
    before = values(ours)
    for learner, given in ((ours, optimizer), (theirs, None)):
        head = learner.hypernetwork.head
        inputs = {"trunk": trunk_of(learner), "weight": [head.weight], "bias": [head.bias]}[part]
        learner.losses(*batch(0), 2, optimizer=given).total.backward(inputs=inputs)
    assert_equal(values(ours), before)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(dense(p.grad), dense(q.grad), rtol=1e-9, atol=1e-12)
    with pytest.raises(RuntimeError, match="no backward pass updated a head"):
        optimizer.step()
    assert_equal(values(ours), before)


def test_a_backward_pass_with_the_head_among_its_inputs_updates_it() -> None:
    learner, twin = learner_at(2), learner_at(2)
    for each in (learner, twin):
        optimizer = one_pass(each)
        head = list(each.hypernetwork.head.parameters())
        inputs = head if each is learner else None
        each.losses(*batch(0), 2, optimizer=optimizer).total.backward(inputs=inputs)
        if each is learner:
            assert all(p.grad is None for p in each.parameters() if not any(p is q for q in head))
    for p, q in zip(
        learner.hypernetwork.head.parameters(), twin.hypernetwork.head.parameters(), strict=True
    ):
        assert torch.equal(p, q)


def test_a_second_backward_pass_of_the_same_losses_is_refused() -> None:
    learner = learner_at(2)
    optimizer = one_pass(learner)
    losses = learner.losses(*batch(0), 2, optimizer=optimizer)
    losses.total.backward(retain_graph=True)
    for stepped in (False, True):
        if stepped:
            optimizer.step()
            optimizer.zero_grad()
        before, total = state_of(learner, optimizer), losses.total.clone()
        with pytest.raises(RuntimeError, match=ANEW):
            losses.total.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match=ANEW):
            torch.autograd.grad(losses.total, trunk_of(learner), retain_graph=True)
        assert_equal(state_of(learner, optimizer), before)
        assert torch.equal(losses.total, total)


@pytest.mark.parametrize("passes", ["native", "reference"])
@pytest.mark.parametrize("changed", ["all", "head", "trunk"])
def test_losses_from_before_a_step_are_refused(
    changed: str, passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if passes == "reference":
        monkeypatch.setenv("HYPERMASK_FAST_NATIVE", "0")
    learner = learner_at(2)
    optimizer = one_pass(learner)
    old = learner.losses(*batch(0), 2, optimizer=optimizer)
    between: torch.optim.Optimizer = optimizer
    if changed != "all":
        part = learner.hypernetwork.get_submodule(changed)
        between = torch.optim.SGD(part.parameters(), 0.1)
    learner.losses(*batch(1), 2, optimizer=between).total.backward()
    between.step()
    learner.zero_grad()
    before = state_of(learner, optimizer)
    with pytest.raises(RuntimeError, match=ANEW):
        old.total.backward()
    assert_equal(state_of(learner, optimizer), before)
    learner.zero_grad()
    TrainingStep(learner, optimizer)(*batch(2), 2)


def test_an_optimizer_that_losses_were_not_given_updates_nothing() -> None:
    """Whether it was used before, is alive or not, or another is in use now."""
    learner = learner_at(1)
    old = one_pass(learner)
    TrainingStep(learner, old)(*batch(0), 1)
    head = learner.hypernetwork.head
    before, moments = values(learner), copy.deepcopy(old.state_dict())
    sgd = torch.optim.SGD(learner.net.parameters(), 0.1)
    for given in (None, sgd):
        sgd.zero_grad()
        learner.losses(*batch(1), 1, optimizer=given).total.backward()
        sgd.step()
    assert isinstance(head.weight.grad, FactoredGrad)
    after = values(learner)
    net = {f"net.{name}" for name, _ in learner.net.named_parameters()}
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (name not in net), name
    for key, state in moments["state"].items():
        assert_equal(state, old.state_dict()["state"][key])


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda ps: torch.optim.SGD(ps, 0.1, foreach=False), id="sgd-single"),
        pytest.param(lambda ps: torch.optim.SGD(ps, 0.1, foreach=True), id="sgd-foreach"),
        pytest.param(lambda ps: torch.optim.Adam(ps, fused=True), id="adam-fused"),
        pytest.param(FactoredAdam, id="factored"),
        pytest.param(lambda ps: FactoredAdam(ps, step_in_backward=True), id="in-backward"),
    ],
)
def test_a_second_optimizer_of_the_head_is_refused(make: Callable[..., Any]) -> None:
    learner = learner_at(1)
    optimizer, other = one_pass(learner), make(learner.hypernetwork.head.parameters())
    learner.losses(*batch(0), 1, optimizer=optimizer).total.backward()
    before = values(learner)
    with pytest.raises(RuntimeError, match=r"asks for the gradient|no backward pass updated"):
        other.step()
    assert_equal(values(learner), before)
    optimizer.step()
    TrainingStep(learner, optimizer)(*batch(1), 1)


def test_an_update_that_no_step_followed_takes_no_later_gradient_away() -> None:
    learner = learner_at(1)
    old = one_pass(learner)
    learner.losses(*batch(0), 1, optimizer=old).total.backward()
    learner.zero_grad()
    learner.losses(*batch(1), 1).total.backward()
    old.reset()
    assert isinstance(learner.hypernetwork.head.weight.grad, FactoredGrad)


def test_a_copy_of_an_optimizer_has_a_state_of_its_own() -> None:
    """And is given to losses by itself."""
    learner, twin = learner_at(1), learner_at(1)
    optimizer, its_optimizer = one_pass(learner), one_pass(twin)
    for each, o in ((learner, optimizer), (twin, its_optimizer)):
        TrainingStep(each, o)(*batch(0), 1)
    optimizer.zero_grad()
    losses = learner.losses(*batch(1), 1, optimizer=optimizer)
    copied = copy.copy(optimizer)
    assert [list(map(id, g["params"])) for g in copied.param_groups] == [
        list(map(id, g["params"])) for g in optimizer.param_groups
    ]
    copied.param_groups[0]["lr"] = 0.0
    losses.total.backward()
    with pytest.raises(RuntimeError, match="no backward pass updated a head"):
        copied.step()
    optimizer.step()
    optimizer.zero_grad()
    TrainingStep(twin, its_optimizer)(*batch(1), 1)
    assert_equal(state_of(learner, optimizer), state_of(twin, its_optimizer))
    before = values(learner)
    TrainingStep(learner, copied)(*batch(2), 1)
    assert_equal(values(learner), before)
    assert all(int(s["step"]) == 2 for s in optimizer.state.values())
    assert all(int(s["step"]) == 2 for s in copied.state.values())
    TrainingStep(learner, optimizer)(*batch(3), 1)
    TrainingStep(twin, its_optimizer)(*batch(3), 1)
    assert_equal(state_of(learner, optimizer), state_of(twin, its_optimizer))


@pytest.mark.parametrize("through", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_learner_and_optimizer_goes_on_alone(through: Callable[..., Any]) -> None:
    """Also one that is made between a backward pass and its step."""
    learner = learner_at(1)
    optimizer = one_pass(learner)
    TrainingStep(learner, optimizer)(*batch(0), 1)
    twin, its_optimizer = through((learner, optimizer))
    before = state_of(twin, its_optimizer)
    optimizer.zero_grad()
    learner.losses(*batch(1), 1, optimizer=optimizer).total.backward()
    late, its_late = through((learner, optimizer))
    optimizer.step()
    optimizer.zero_grad()
    assert_equal(state_of(twin, its_optimizer), before)
    TrainingStep(twin, its_optimizer)(*batch(1), 1)
    assert_equal(state_of(learner, optimizer), state_of(twin, its_optimizer))
    with pytest.raises(RuntimeError, match="no backward pass updated a head"):
        its_late.step()
    TrainingStep(late, its_late)(*batch(2), 1)


def test_groups_may_be_added_between_losses_and_backward() -> None:
    learner, twin = learner_at(1), learner_at(1)
    held = [p for p in learner.parameters() if p is not learner.hypernetwork.embeddings]
    optimizer = FactoredAdam(held, step_in_backward=True)
    losses = learner.losses(*batch(0), 1, optimizer=optimizer)
    optimizer.add_param_group({"params": [learner.hypernetwork.embeddings]})
    losses.total.backward()
    optimizer.step()
    reference = torch.optim.Adam(twin.parameters())
    twin.losses(*batch(0), 1).total.backward()
    reference.step()
    for (name, p), q in zip(learner.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9, msg=name)
