"""The head's passes and the engine's step on the kernels, interpreted where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hypermask_fast.backends import choice
from hypermask_fast.head import cuda, passes
from hypermask_fast.head.adam import AdamOptions
from hypermask_fast.head.types import Head, HeadStep
from hypermask_fast.masks import cuda as mask_weights
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import make_network
from hypermask_fast.optim.factored_adam import FactoredAdam
from tests.support.head_cases import head_of, tensors

ROWS, WIDTH = 70, 9
ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "decoupled": False}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send what goes to the kernels on CUDA there."""

    def uses(op: str, tensor: Tensor, name: str | None = None, **sizes: int) -> bool:
        return choice.requested(name) != "reference" and tensor.dtype == torch.float32

    monkeypatch.setattr(cuda, "takes", lambda weight: uses("head", weight))
    monkeypatch.setattr(cuda, "uses_kernels", uses)
    monkeypatch.setattr(mask_weights, "uses_kernels", uses)


def head(device: torch.device, dtype: torch.dtype = torch.float32) -> Head:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(s, generator=generator) for s in ((ROWS, WIDTH), (ROWS,))]
    moments = [torch.zeros_like(p) for p in parameters for _ in range(2)]
    return head_of([value.to(device, dtype) for value in (*parameters, *moments)])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("earlier", [0, 1, 4])
def test_one_pass_equals_the_specification(earlier: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(1)
    dz = torch.randn(1, ROWS, generator=generator).to(device)
    hidden = torch.randn(earlier + 1, WIDTH, generator=generator).to(device)
    adam = AdamOptions(
        lr=torch.tensor(1e-2, device=device),
        step=torch.tensor(1.0, device=device),
        finite=torch.tensor(True, device=device),
        **ADAM,
    )
    coefficient = torch.tensor(0.02, dtype=torch.float64, device=device)
    found = []
    for dtype in (torch.float32, torch.float64):
        state = head(device, dtype)
        kept = passes.logits(state, hidden.to(dtype))[1:] - 0.1
        step = HeadStep(state, dz.to(dtype), hidden.to(dtype), kept, coefficient, adam)
        found.append([*passes.step_rows(step), *tensors(state)])
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact.double(), rtol=2e-5, atol=2e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("earlier", "fits"), [(0, True), (4, True), (16, False)])
def test_a_step_that_looks_ahead(
    earlier: int, fits: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    kernel = cuda.step_ahead
    monkeypatch.setattr(cuda, "step_ahead", lambda step: taken.append(step) or kernel(step))
    generator = torch.Generator().manual_seed(1)
    dz = torch.randn(1, ROWS, generator=generator).to(device)
    hidden = torch.randn(earlier + 1, WIDTH, generator=generator).to(device)
    adam = AdamOptions(lr=1e-2, step=2.0, **ADAM)
    found = []
    for dtype in (torch.float32, torch.float64):
        state = head(device, dtype)
        kept = passes.logits(state, hidden.to(dtype))[1:] - 0.1
        version = state.weight._version
        step = HeadStep(state, dz.to(dtype), hidden.to(dtype), kept, 0.02, adam, looks_ahead=True)
        found.append([*passes.step_rows(step), *tensors(state)])
        assert state.weight._version > version
    assert len(taken) == fits
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact.double(), rtol=2e-5, atol=2e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("earlier", [0, 4])
def test_the_gradient_of_a_bias_that_another_steps(earlier: int, device: torch.device) -> None:
    state, both = head(device), head(device)
    dz, hidden = torch.randn(1, ROWS, device=device), torch.randn(earlier + 1, WIDTH, device=device)
    kept = passes.logits(state, hidden)[1:].clone()
    adam = AdamOptions(lr=1e-2, step=1.0, **ADAM)
    wanted = passes.step_rows(HeadStep(both, dz, hidden, kept, 0.1, adam))
    grad, before = torch.full_like(dz[0], torch.nan), state.bias.clone()
    version = state.weight._version
    found = passes.step_rows(HeadStep(state, dz, hidden, kept, 0.1, adam, bias_grad=grad))
    assert all(map(torch.equal, found, wanted))
    assert torch.equal(state.weight, both.weight)
    assert torch.equal(state.bias, before)
    # The earlier logits are exactly those that are kept.
    assert torch.equal(grad, dz[0])
    # Autograd must not use what it saved of a tensor that a kernel changed.
    assert state.weight._version > version


@pytest.mark.usefixtures("kernels")
def test_a_step_that_is_not_finite_changes_nothing(device: torch.device) -> None:
    state, before = head(device), head(device)
    dz = torch.full((1, ROWS), torch.nan, device=device)
    hidden, kept = torch.randn(3, WIDTH, device=device), torch.zeros(2, ROWS, device=device)
    adam = AdamOptions(lr=1e-2, step=1.0, finite=torch.tensor(False, device=device), **ADAM)
    passes.step_rows(HeadStep(state, dz, hidden, kept, 0.1, adam))
    assert all(map(torch.equal, tensors(state), tensors(before)))


@pytest.mark.usefixtures("kernels")
def test_adam_from_factors_equals_the_specification(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(1)
    dz = torch.randn(3, ROWS, generator=generator).to(device)
    hidden = torch.randn(3, WIDTH, generator=generator).to(device)
    adam = AdamOptions(lr=1e-2, step=1.0, **ADAM)
    found = []
    for dtype in (torch.float32, torch.float64):
        state = head(device, dtype)
        passes.adam_rows(HeadStep(state, dz.to(dtype), hidden.to(dtype), adam=adam))
        grad = passes.hidden_grad(state.weight, dz.to(dtype))
        found.append([state.weight, *state.moments, grad])
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact.double(), rtol=2e-5, atol=2e-5)


def train(
    dtype: torch.dtype, in_backward: bool, device: torch.device
) -> tuple[list[float], list[Tensor]]:
    """Two tasks of three steps; return the losses and the parameters."""
    torch.manual_seed(0)
    net = make_network("mlp", (6,), 2, hidden=(7,))
    x, y = torch.randn(5, 6), torch.randint(2, (5,))
    learner = HyperMask(
        net, embedding_dim=3, hidden=(4,), sparsity=30.0, beta=0.1, lam=1e-3, example_input=x
    )
    learner, x, y = learner.to(device, dtype), x.to(device, dtype), y.to(device)
    losses = []
    for task in range(2):
        learner.add_task()
        learner.begin_task(task)
        optimizer = FactoredAdam(
            learner.parameters(),
            lr=1e-3,
            step_in_backward=in_backward,
        )
        for _ in range(3):
            loss = learner.losses(x, y, task, optimizer=optimizer)
            loss.total.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses += [float(value) for value in loss.scalars().values()]
        learner.end_task()
    return losses, [p.detach() for p in learner.parameters()]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("in_backward", [False, True])
def test_training_on_kernels_follows_float64(in_backward: bool, device: torch.device) -> None:
    losses, parameters = train(torch.float32, in_backward, device)
    exact_losses, exact_parameters = train(torch.float64, in_backward, device)
    assert losses[14] == 0.0  # the output regularizer in the first step of the second task
    # Adam divides gradients by their size: what rounds differently may move by a step of lr.
    assert losses == pytest.approx(exact_losses, rel=1e-3, abs=1e-5)
    for found, exact in zip(parameters, exact_parameters, strict=True):
        assert float((found.double() - exact).abs().median()) < 1e-5
