"""A loss of one's own beside the regularizer, and the network of one task as a module."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hypermask_fast as hmf
from tests.methods.test_names import METHODS, SMALL, X, Y, learned, net, train

LOSSES: dict[str, Callable[[], hmf.Learner]] = {
    "hypermask": lambda: hmf.HyperMask(net(), **SMALL, beta=0.3, lam=0.02),
    "masked l1": lambda: hmf.HyperMask(net(), **SMALL, beta=0.3, lam=0.02, masked_l1=False),
    "sampled": lambda: hmf.HyperMask(net(), **SMALL, beta=0.3, regularized_tasks=1),
    "shared": lambda: hmf.HyperMask(net(), **SMALL, beta=0.3, lam=0.02, shared=["3"]),
    "chunked": lambda: hmf.HyperMask(net(), **SMALL, beta=0.3, head="chunked", chunk_size=64),
    "hnet": lambda: hmf.HNET(net(), **SMALL, beta=0.3, head="full", lookahead=False),
    "hyperinterval": lambda: hmf.HyperInterval(net(), **SMALL, beta=0.3, mode="task"),
    "supsup": lambda: hmf.SupSup(net()),
    "exssnet": lambda: hmf.ExSSNeT(net()),
}


def in_third_task(name: str) -> hmf.Learner:
    """A learner some steps into its third task."""
    torch.manual_seed(0)
    learner = LOSSES[name]()
    for _ in range(2):
        train(learner, learner.add_task())
    learner.begin_task(learner.add_task())
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        learner.losses(X, Y, 2).total.backward()
        optimizer.step()
    learner.zero_grad()
    return learner


def grads(learner: hmf.Learner) -> dict[str, torch.Tensor]:
    found = {}
    for name, p in learner.named_parameters():
        if p.grad is not None:
            dense = getattr(p.grad, "to_dense", lambda grad=p.grad: grad)
            found[name] = dense() if hasattr(p.grad, "dz") else p.grad
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_the_regularization_is_what_the_losses_add(name: str) -> None:
    learner = in_third_task(name)
    twin = copy.deepcopy(learner)
    losses = learner.losses(X, Y, 2)
    added = twin.regularization(2)
    assert added.shape == ()
    expected = losses.total - losses.task
    # Sums and differences of float32 of the size of the total.
    assert torch.allclose(added, expected, rtol=1e-5, atol=1e-6 * float(losses.total.detach()))
    assert twin.steps_taken == learner.steps_taken
    if name in ("supsup", "exssnet"):
        assert float(added) == 0
        assert not added.requires_grad
        return
    assert float(added.detach()) > 0
    # With the loss of the batch its gradient is that of the total.
    (losses.total - losses.task).backward()
    added.backward()
    ours, theirs = grads(learner), grads(twin)
    for key, grad in theirs.items():
        scale = float(ours[key].abs().max())
        assert torch.allclose(grad, ours[key], rtol=1e-4, atol=1e-5 * scale + 1e-9), key


@pytest.mark.parametrize("phase", ["mask", "weights"])
@pytest.mark.parametrize("name", ["supsup", "exssnet"])
def test_a_forward_of_the_current_task_trains_what_its_losses_train(name: str, phase: str) -> None:
    learner = in_third_task(name)
    if name == "exssnet":
        learner.begin_phase(phase)
    twin = copy.deepcopy(learner)
    learner.losses(X, Y, 2).total.backward()
    F.cross_entropy(twin(X, 2), Y).backward()
    ours, theirs = grads(learner), grads(twin)
    assert ours.keys() == theirs.keys() != set()
    for key, grad in theirs.items():
        assert torch.equal(grad, ours[key]), key


def test_a_forward_in_training_has_the_ramp_and_the_dropout_of_its_step() -> None:
    torch.manual_seed(0)
    layers = nn.Linear(16, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 2)
    made = nn.Sequential(nn.Flatten(), *layers)
    learner = hmf.HyperMask(made, **SMALL, sparsity=70.0, dropout="first_step").train()
    learner.begin_task(learner.add_task(), steps=10)
    twin = copy.deepcopy(learner)
    for step in range(3):
        torch.manual_seed(step)
        expected = learner.losses(X, Y, 0).logits
        torch.manual_seed(step)
        assert torch.equal(twin(X, 0), expected)
        again = twin(X, 0)
        assert torch.equal(again, expected) == (step > 0)
        twin.regularization(0)
    # What is kept has all of the sparsity.
    twin.eval()
    assert not torch.equal(twin(X, 0), learner(X, 0))


@pytest.mark.parametrize("name", ["hypermask", "hnet"])
def test_a_loop_with_a_loss_of_ones_own_learns_as_losses_do(name: str) -> None:
    learner = in_third_task(name)
    twin = copy.deepcopy(learner)
    optimizers = [
        torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=0.01)
        for each in (learner, twin)
    ]
    for _ in range(4):
        for optimizer in optimizers:
            optimizer.zero_grad()
        learner.losses(X, Y, 2).total.backward()
        (F.cross_entropy(twin(X, task=2), Y) + twin.regularization(2)).backward()
        for optimizer in optimizers:
            optimizer.step()
    for key, p in learner.named_parameters():
        assert torch.allclose(p, twin.get_parameter(key), rtol=1e-4, atol=1e-6), key


def test_where_there_is_no_such_term_it_says_what_to_call() -> None:
    looking_ahead = hmf.HNET(net(), **SMALL)
    looking_ahead.add_task()
    looking_ahead.begin_task(0)
    with pytest.raises(RuntimeError, match=r"lookahead is True.* call step\(x, y, task, optimizer"):
        looking_ahead.regularization(0)
    for name in ("hnet_r", "hnet_tir"):
        learner = METHODS[name]()
        learner.add_task(classes=[0, 1])
        learner.begin_task(0)
        with pytest.raises(RuntimeError, match=r"the regularization of task 0 was asked for and"):
            learner.regularization(0)
    with pytest.raises(RuntimeError, match=r"no task is being learned; call begin_task\(1\)"):
        learned("hypermask").regularization("t1")
    untraced = hmf.HyperMask(net(), **SMALL)
    untraced.add_task()
    untraced.begin_task(0)
    with pytest.raises(RuntimeError, match="the bias that is not masked is still unknown"):
        untraced.regularization(0)


@pytest.mark.parametrize("name", METHODS)
def test_the_network_of_a_task_is_a_view(name: str) -> None:
    learner = learned(name)
    view = learner.net_for("t1")
    assert isinstance(view, nn.Module)
    assert not view.training
    assert torch.equal(view(X), learner(X, task=1))
    assert "task='t1'" in repr(view)
    learner.rename_task("t1", "birds")
    train(learner.train(), "t0")
    learner.eval()
    assert torch.equal(view(X), learner(X, task="birds"))
    assert [*view.parameters()] == [*learner.parameters()]
    view.train()
    assert learner.training


@pytest.mark.parametrize("name", METHODS)
def test_what_the_network_does_outside_a_task_is_what_its_repr_says(name: str) -> None:
    learner = learned(name)
    said = f"net(x) outside a task: {learner.alone}"
    assert said in repr(learner)
    if hasattr(learner, "report"):
        assert said in learner.report()
    plain = net()
    plain.load_state_dict({k: v for k, v in learner.net.state_dict().items()}, strict=False)
    assert torch.equal(learner.net(X), plain(X))


def test_a_view_goes_with_its_task() -> None:
    learner = learned("hypermask")
    number = learner.add_task("new")
    view = learner.net_for("new")
    learner.rename_task("new", "newer")
    assert "task='newer'" in repr(view)
    assert torch.equal(view(X), learner(X, task=number))
    learner.remove_task("newer")
    learner.add_task("other")
    with pytest.raises(ValueError, match="no task is called 'newer'"):
        view(X)


def test_a_view_takes_gradients() -> None:
    learner = in_third_task("hypermask")
    loss = F.cross_entropy(learner.net_for(2)(X), Y)
    loss.backward()
    assert learner.hypernetwork.embeddings.grad is not None
