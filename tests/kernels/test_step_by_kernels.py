"""Whole steps of a learner by the kernels of a GPU, against the same steps without them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from hypermask_fast.head import cuda
from hypermask_fast.hypernetworks import trunk
from hypermask_fast.kernels import ops
from hypermask_fast.masks import cuda as mask_weights
from hypermask_fast.methods import totals
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.optim import cuda as tables
from hypermask_fast.optim import dense
from hypermask_fast.optim.factored_adam import FactoredAdam
from tests.support.graph_cases import make_learner, make_tasks, mlp
from tests.support.hypermask_cases import adam_of

pytest.importorskip("triton")


@pytest.fixture
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of a GPU for tensors on a CPU, but for PyTorch's own fused Adam."""
    for module, name in ((totals, "_on_gpu"), (trunk, "_on_gpu"), (tables, "_runs")):
        monkeypatch.setattr(module, name, lambda tensor: tensor.dtype == torch.float32)
    monkeypatch.setattr(cuda, "_runs", lambda loss: True)
    monkeypatch.setattr(cuda, "takes", lambda weight: weight.dtype == torch.float32)
    monkeypatch.setattr(mask_weights, "uses_kernels", lambda *_, **__: True)
    monkeypatch.setattr(dense, "fuses_on_device", lambda params, group: bool(params))
    monkeypatch.setattr(ops, "mask_thresholds", ops._thresholds_kernel)
    monkeypatch.setattr(ops, "mask_weights", ops._mask_weights_kernel)
    monkeypatch.setattr(ops, "mask_weights_backward", ops._mask_weights_backward_kernel)


def tensors_of(learner: HyperMask, optimizer: FactoredAdam) -> dict[str, Tensor]:
    found = {name: p.detach().clone() for name, p in learner.named_parameters()}
    for name, p in learner.named_parameters():
        found |= {f"{name}.{k}": v.clone() for k, v in optimizer.state.get(p, {}).items()}
    return found


def steps(learner: HyperMask, poisoned: int | None = None) -> list[dict[str, Tensor]]:
    """Two steps, and one of an input that is not a number; what there is after each."""
    torch.manual_seed(5)
    optimizer, found = adam_of(learner, lr=1e-2, weight_decay=0.1), []
    for group in optimizer.param_groups:
        group["capturable"] = True
    for number in range(2 + (poisoned is not None)):
        x, y = torch.rand(8, 1, 6, 6), torch.randint(2, (8,))
        if number == poisoned:
            x[0] = torch.nan
        losses = learner.step(x, y, 2, {"main": optimizer}).detached()
        scalars = {f"losses.{name}": value.clone() for name, value in losses.scalars().items()}
        found.append({**tensors_of(learner, optimizer), **scalars})
    return found


def fresh() -> HyperMask:
    torch.manual_seed(3)
    return make_learner(mlp, 2, make_tasks())


def test_steps_are_those_without_kernels(request: pytest.FixtureRequest) -> None:
    expected = steps(copy.deepcopy(fresh()))
    request.getfixturevalue("by_kernels")
    # After the other tasks were recorded anew: their logits are those of the kernels then.
    found = steps(fresh())
    for after, right in zip(found, expected, strict=True):
        assert after.keys() == right.keys()
        for name, value in right.items():
            torch.testing.assert_close(after[name], value, rtol=2e-4, atol=2e-5, msg=name)


@pytest.mark.usefixtures("by_kernels")
def test_a_step_that_is_not_finite_changes_nothing() -> None:
    first, second, third = steps(fresh(), poisoned=1)
    assert second["losses.total"].isnan()
    for name, value in first.items():
        if not name.startswith("losses."):
            assert torch.equal(second[name], value), name
    changed = {name for name, value in third.items() if not torch.equal(second[name], value)}
    assert {"hypernetwork.embeddings", "hypernetwork.head.weight"} <= changed
    assert any(name.startswith("net.") for name in changed)
