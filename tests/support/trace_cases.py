"""A learner and the public operations, and what PyTorch has to trace them with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from hypermask_fast import functional
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from hypermask_fast.optim.factored_adam import FactoredAdam


def make(**options: Any) -> HyperMask:
    learner = HyperMask(
        MLP(5, (4,), 3),
        **{"embedding_dim": 3, "hidden": (6,), "capacity": 4, "exempt": "classifier.bias"},
        **{"sparsity": 30.0, "ramp": False, **options},
    )
    learner.add_task()
    learner.add_task()
    return learner


class OneTask(nn.Module):
    """A learner as a module of its inputs alone."""

    def __init__(self, learner: HyperMask) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, x: Tensor) -> Tensor:
        return self.learner(x, 1)


def _linear(x: Tensor, w: Tensor, b: Tensor, z: Tensor, u: Tensor) -> Tensor:
    cuts = (functional.mask_threshold(z, 30.0), functional.mask_threshold(u, 30.0))
    return functional.masked_linear(x, w, b, z, u, *cuts)


def _conv2d(x: Tensor, w: Tensor, b: Tensor, z: Tensor, u: Tensor) -> Tensor:
    cut = functional.mask_threshold(z, 30.0)
    return functional.masked_conv2d(x, w, b, z, u, cut, None, 2, 1)


OPERATIONS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "mask_threshold": (lambda z: functional.mask_threshold(z, 30.0), ((5, 7),)),
    "semi_binary_mask": (lambda z: functional.semi_binary_mask(z, 30.0), ((5, 7),)),
    "masked_linear": (_linear, ((6, 5), (4, 5), (4,), (4, 5), (4,))),
    "masked_conv2d": (_conv2d, ((2, 3, 6, 6), (4, 3, 3, 3), (4,), (4, 3, 3, 3), (4,))),
}


def _functional(function: Callable[..., Any], *example: Tensor) -> Callable[..., Any]:
    def run(*values: Tensor) -> Any:
        with FunctionalTensorMode():
            out = function(*map(FunctionalTensor.to_functional, values))
        torch._sync(out)
        return torch._from_functional_tensor(out.elem)

    return run


TRACERS: dict[str, Callable[..., Callable[..., Any]]] = {
    "make_fx-real": lambda f, *x: make_fx(f, tracing_mode="real")(*x),
    "make_fx-fake": lambda f, *x: make_fx(f, tracing_mode="fake")(*x),
    "make_fx-symbolic": lambda f, *x: make_fx(f, tracing_mode="symbolic")(*x),
    "jit": lambda f, *x: torch.jit.trace(f, x, check_trace=False),
    "functionalize": lambda f, *x: torch.func.functionalize(f),
    "functional-tensor": _functional,
    "compile": lambda f, *x: torch.compile(f, fullgraph=True, backend="aot_eager"),
}


def losses_and_step(learner: HyperMask, x: Tensor, y: Tensor, task: int) -> list[Tensor]:
    """A step of training: its losses and gradients."""
    learner.begin_task(task)
    optimizer = FactoredAdam(learner.parameters())
    losses = learner.losses(x, y, task)
    losses.total.backward()
    gradients = [p.grad for p in learner.parameters() if p.grad is not None]
    optimizer.step()
    optimizer.zero_grad()
    learner.end_task()
    return [*losses.scalars().values(), losses.logits, *gradients]


def _shapes(values: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in values]


def fake_inside() -> None:
    """All of it made in a FakeTensorMode has the shapes of the real one."""
    wanted = [losses_and_step(make(), torch.randn(4, 5), torch.zeros(4).long(), 0)]
    with FakeTensorMode():
        learner, x, y = make(), torch.randn(4, 5), torch.zeros(4, dtype=torch.int64)
        assert learner(x, 0).shape == (4, 3)
        assert learner.all_outputs(x).shape == (2, 4, 3)
        assert {m.shape for m in learner.masks(0).values()} == {(4, 5), (4,), (3, 4)}
        found = losses_and_step(learner, x, y, 0)
        assert _shapes(found) == _shapes(wanted[0])
        losses_and_step(learner, x, y, 1)


def fake_inputs() -> None:
    """A real learner gives shapes for fake inputs."""
    learner = make()
    for targets in ("full", "frozen_head"):
        learner = make(targets=targets)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        x, y = mode.from_tensor(torch.randn(4, 5)), mode.from_tensor(torch.zeros(4).long())
        assert learner(x, 0).shape == (4, 3)
        with mode:
            assert learner(x, 0).shape == (4, 3)
            assert learner.hypernetwork(torch.tensor([1, 0]))[0].shape == (39,)
        learner.begin_task(0)
        learner.end_task()
        learner.begin_task(1)
        with mode:
            assert learner.losses(x, y, 1).logits.shape == (4, 3)


def fake_update() -> None:
    """A head without memory is not updated in a backward pass, in a sentence."""
    with FakeTensorMode():
        learner, x, y = make(), torch.randn(4, 5), torch.zeros(4, dtype=torch.int64)
        learner.begin_task(0)
        optimizer = FactoredAdam(learner.parameters(), step_in_backward=True)
        with pytest.raises(RuntimeError, match="a head of type"):
            learner.losses(x, y, 0, optimizer=optimizer)


def default_device() -> None:
    """A default device does not reach what native passes write to."""
    learner, x, y = make(), torch.randn(4, 5), torch.zeros(4).long()
    for task in (0, 1):
        for in_backward in (False, True):
            optimizer = FactoredAdam(learner.parameters(), step_in_backward=in_backward)
            learner.begin_task(task)
            for device in ("cpu", "meta"):
                # The optimizer makes its state in the first step.
                with torch.device(device):
                    losses = learner.losses(x, y, task, optimizer=optimizer)
                    losses.total.backward()
                    optimizer.step()
                    optimizer.zero_grad()
            learner.end_task()
    assert all(bool(p.isfinite().all()) for p in learner.parameters())


if __name__ == "__main__":
    torch.manual_seed(0)
    globals()[sys.argv[1]]()
    print("done")
