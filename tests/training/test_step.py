"""The training step that updates the head in its backward pass, against the ordinary one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.native import library
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.optim.factored_grad import FactoredGrad
from hypermask_fast.training.step import TrainingStep
from tests.support.step_cases import assert_equal, batch, learner_at, one_pass, run, state_of


@pytest.mark.parametrize("task", [0, 1, 3])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("capturable", [False, True], ids=["numbers", "tensors"])
def test_one_pass_takes_the_steps_of_torch_adam(
    task: int, weight_decay: float, capturable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if capturable:
        # The compiled pass takes numbers.
        monkeypatch.setattr(library, "load", lambda: None)
    ours, theirs = learner_at(task), learner_at(task)
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": weight_decay}
    a = run(ours, one_pass(ours, capturable=capturable, **options), task)
    b = run(theirs, torch.optim.Adam(theirs.parameters(), **options), task)
    for left, right in zip(a, b, strict=True):
        for name in ("total", "task", "output_reg", "weight_reg"):
            x, y = getattr(left, name).item(), getattr(right, name).item()
            assert x == pytest.approx(y, rel=1e-9, abs=1e-12), name
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9, msg=name)


def test_the_head_has_no_gradient_left_and_the_optimizer_counts_one_step() -> None:
    learner = learner_at(1)
    optimizer = one_pass(learner)
    TrainingStep(learner, optimizer)(*batch(0), 1)
    head = learner.hypernetwork.head
    assert head.weight.grad is None
    assert head.bias.grad is None
    assert [int(s["step"]) for s in optimizer.state.values()] == [1] * len(optimizer.state)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_backward_pass_completes_the_losses_of_a_loop_of_ones_own(scale: float) -> None:
    ours, theirs = learner_at(3), learner_at(3)
    optimizer, expected = one_pass(ours), theirs.losses(*batch(0), 3)
    losses = ours.losses(*batch(0), 3, optimizer=optimizer)
    assert losses.output_reg.item() == 0.0
    assert losses.total < expected.total
    (losses.total * scale).backward()
    optimizer.step()
    for name in ("total", "task", "output_reg", "weight_reg"):
        value = getattr(losses, name).item()
        assert value == pytest.approx(getattr(expected, name).item(), rel=1e-12), name


def test_only_a_backward_pass_of_losses_updates_the_head() -> None:
    learner = learner_at(2)
    optimizer = one_pass(learner)
    head = learner.hypernetwork.head.weight
    before = head.detach().clone()
    x, y = batch(0)
    with torch.no_grad():
        validation = learner.losses(x, y, 2, optimizer=optimizer)
    assert validation.output_reg > 0
    learner(x, 2).sum().backward()
    assert torch.equal(head, before)
    assert isinstance(head.grad, FactoredGrad)
    optimizer.zero_grad()
    learner.losses(x, y, 2, optimizer=optimizer).total.backward()
    assert not torch.equal(head, before)


def test_only_the_optimizer_that_is_given_updates_the_head() -> None:
    learner = learner_at(1)
    first, second = one_pass(learner), FactoredAdam(learner.parameters())
    head = learner.hypernetwork.head.weight
    before = head.detach().clone()
    for given in (None, second, copy.copy(second)):
        learner.losses(*batch(0), 1, optimizer=given).total.backward()
        assert isinstance(head.grad, FactoredGrad)
        assert torch.equal(head, before)
        second.zero_grad()
    third = one_pass(learner)
    third.load_state_dict(copy.deepcopy(first.state_dict()))
    losses = learner.losses(*batch(0), 1, optimizer=third)
    losses.total.backward()
    third.step()
    assert third.state[head]["step"] == 1
    assert not first.state[head]


def test_the_update_belongs_to_an_optimizer_of_the_head() -> None:
    learner = learner_at(1)
    of_the_net = FactoredAdam(learner.net.parameters(), step_in_backward=True)
    learner.losses(*batch(0), 1, optimizer=of_the_net).total.backward()
    assert isinstance(learner.hypernetwork.head.weight.grad, FactoredGrad)
    with pytest.raises(RuntimeError, match="no backward pass updated a head"):
        of_the_net.step()


def test_a_copy_of_learner_and_optimizer_updates_its_own_head() -> None:
    learner = learner_at(1)
    optimizer = one_pass(learner)
    twin, its_optimizer = copy.deepcopy((learner, optimizer))
    before = learner.hypernetwork.head.weight.detach().clone()
    TrainingStep(twin, its_optimizer)(*batch(0), 1)
    assert torch.equal(learner.hypernetwork.head.weight, before)
    TrainingStep(learner, optimizer)(*batch(0), 1)
    assert_equal(state_of(learner, optimizer), state_of(twin, its_optimizer))


def test_a_frozen_trunk_does_not_keep_the_head_from_learning() -> None:
    ours, theirs = learner_at(1), learner_at(1)
    for learner in (ours, theirs):
        learner.hypernetwork.trunk.requires_grad_(False)
        learner.hypernetwork.embeddings.requires_grad_(False)
    run(ours, one_pass(ours), 1)
    run(theirs, torch.optim.Adam(theirs.parameters()), 1)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="looked-at"),
        pytest.param({"capturable": True}, id="on-the-device"),
        pytest.param({"capturable": True, "weight_decay": 0.1}, id="l2"),
        pytest.param(
            {"capturable": True, "weight_decay": 0.1, "decoupled_weight_decay": True}, id="adamw"
        ),
        pytest.param({"capturable": True, "moments_dtype": torch.bfloat16}, id="bfloat16"),
    ],
)
@pytest.mark.parametrize("passes", ["native", "pytorch"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(
    options: dict[str, Any], passes: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if passes == "pytorch":
        monkeypatch.setattr(library, "load", lambda: None)
    learner, undisturbed = learner_at(1), learner_at(1)
    optimizer, other = one_pass(learner, **options), one_pass(undisturbed, **options)
    step, its_step = TrainingStep(learner, optimizer), TrainingStep(undisturbed, other)
    bad, y = batch(1)
    bad[0, 0] = value
    # The very first step, when there are no moments yet, and a later one.
    for good in (0, 2):
        before = {name: p.detach().clone() for name, p in learner.named_parameters()}
        losses = step(bad, y, 1)
        assert not losses.total.isfinite()
        for name, p in learner.named_parameters():
            assert torch.equal(p, before[name]), name
        step(*batch(good), 1)
        its_step(*batch(good), 1)
        assert_equal(state_of(learner, optimizer), state_of(undisturbed, other))


def test_no_eps_is_no_division_of_zero_by_zero_where_nothing_changes() -> None:
    learner = learner_at(1)
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    x, y = batch(1)
    TrainingStep(learner, one_pass(learner, eps=0.0, capturable=True))(x * torch.nan, y, 1)
    assert_equal(before, {name: p.detach() for name, p in learner.named_parameters()})


def test_an_ordinary_loop_leaves_a_gradient_in_factors() -> None:
    learner = learner_at(2)
    learner.losses(*batch(0), 2).total.backward()
    grad = learner.hypernetwork.head.weight.grad
    assert isinstance(grad, FactoredGrad)
    assert grad.is_factored
    assert grad.dz.shape[0] == 3


def clips(learner: HyperMask, optimizer: FactoredAdam) -> None:
    nn.utils.clip_grad_norm_(learner.parameters(), 1.0)


def clips_values(learner: HyperMask, optimizer: FactoredAdam) -> None:
    nn.utils.clip_grad_value_(learner.parameters(), 1.0)


def reads(learner: HyperMask, optimizer: FactoredAdam) -> None:
    grad = learner.hypernetwork.head.weight.grad
    assert grad is not None
    assert repr(grad) == "SpentGrad(shape=(53, 4), dtype=torch.float64)"
    float(grad.abs().max())


def accumulates(learner: HyperMask, optimizer: FactoredAdam) -> None:
    learner.losses(*batch(1), 1, optimizer=optimizer).total.backward()


def adds_another_loss(learner: HyperMask, optimizer: FactoredAdam) -> None:
    learner(batch(1)[0], 1).sum().backward()


def unscales(learner: HyperMask, optimizer: FactoredAdam) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    scaler.unscale_(optimizer)


def scales(learner: HyperMask, optimizer: FactoredAdam) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)


@pytest.mark.parametrize(
    ("misuse", "match"),
    [
        pytest.param(clips, "linalg_vector_norm asks .* cannot be clipped", id="clip-norm"),
        pytest.param(clips_values, "asks for the gradient .*=False", id="clip-value"),
        pytest.param(reads, "abs asks for the gradient .*=False", id="read"),
        pytest.param(accumulates, r"second backward pass .* call step\(\)", id="accumulate"),
        pytest.param(adds_another_loss, "cannot be .* accumulated", id="another-loss"),
        pytest.param(unscales, "cannot be clipped, unscaled", id="unscale"),
        pytest.param(scales, "GradScaler is to step .* use bfloat16", id="scaler"),
    ],
)
def test_what_needs_the_gradient_is_refused(misuse: Callable[..., None], match: str) -> None:
    learner = learner_at(1)
    optimizer = one_pass(learner)
    learner.losses(*batch(0), 1, optimizer=optimizer).total.backward()
    with pytest.raises(RuntimeError, match=match):
        misuse(learner, optimizer)


def test_a_gradient_from_before_is_refused() -> None:
    learner = learner_at(1)
    optimizer = one_pass(learner)
    learner(batch(1)[0], 1).sum().backward()
    losses = learner.losses(*batch(0), 1, optimizer=optimizer)
    with pytest.raises(RuntimeError, match="second backward pass"):
        losses.total.backward()
    optimizer.zero_grad()
    learner.losses(*batch(0), 1, optimizer=optimizer).total.backward()


def test_a_step_needs_a_backward_pass() -> None:
    learner = learner_at(1)
    optimizer = one_pass(learner)
    with pytest.raises(RuntimeError, match="no backward pass updated a head"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="no backward pass updated a head"):
        optimizer.step(lambda: None)
    learner.losses(*batch(0), 1, optimizer=optimizer).total.backward()
    optimizer.reset()
    learner.losses(*batch(0), 1, optimizer=optimizer).total.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="no backward pass"):
        optimizer.step()


def test_a_chunked_head_takes_the_ordinary_step() -> None:
    options = {"head": "chunked", "chunk_size": 7, "chunk_embedding_dim": 2}
    ours, theirs = learner_at(2, **options), learner_at(2, **options)
    run(ours, FactoredAdam(ours.parameters()), 2)
    run(theirs, torch.optim.Adam(theirs.parameters()), 2)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9, msg=name)
    match = "ChunkedHypernetwork .* cannot be updated .* without step_in_backward"
    with pytest.raises(RuntimeError, match=match):
        ours.losses(*batch(0), 2, optimizer=one_pass(ours))
