"""What a HyperMask learner puts out: for mixed tasks, for classes, and as a plain network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from tests.support.hypermask_cases import batch, make, mixed_net, perturb


def ids_to_rows(learner: HyperMask, x: Tensor, ids: Sequence[int]) -> Tensor:
    return torch.cat([learner(x[i : i + 1], task) for i, task in enumerate(ids)])


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([0, 1, 2, 0, 1, 2], id="interleaved"),
        pytest.param([2, 2, 1, 1, 0, 0], id="descending"),
        pytest.param([1, 1, 1, 1, 1, 1], id="one-task"),
        pytest.param([2, 0, 2, 2, 0, 2], id="two-of-three"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_a_mixed_batch_equals_its_rows_one_by_one(ids: list[int], dtype: torch.dtype) -> None:
    learner = make(MLP(5, (4,), 3).double(), sparsity=30.0)
    x = torch.randn(6, 5, dtype=torch.float64)
    grads = []
    for run in (
        lambda x: learner(x, torch.tensor(ids, dtype=dtype)),
        lambda x: ids_to_rows(learner, x, ids),
    ):
        learner.zero_grad()
        leaf = x.clone().requires_grad_()
        logits = run(leaf)
        (logits * torch.arange(18.0).view(6, 3).sin()).sum().backward()
        found = [leaf.grad, *(p.grad for p in learner.parameters())]
        grads.append([logits.detach(), *(torch.zeros(()) if g is None else g for g in found)])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_one_id_may_be_a_number_or_a_tensor() -> None:
    learner = make()
    x, _ = batch(learner)
    expected = learner(x, 1)
    for task in (torch.tensor(1), torch.tensor(1, dtype=torch.int32), np.int64(1)):
        assert torch.equal(learner(x, task), expected)
    assert not torch.equal(learner(x, 2), expected)
    assert learner(x[:0], 1).shape == (0, 3)


@pytest.mark.parametrize("bn", ["batch", "per_task"])
def test_tasks_are_not_mixed_where_rows_share_statistics(bn: str) -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    learner = make(net, bn=bn)
    x, _ = batch(learner)
    ids = torch.tensor([0, 1] * 4)
    with pytest.raises(ValueError, match=f"several tasks.*training mode with bn='{bn}'.*eval"):
        learner(x, ids)
    assert learner(x, torch.zeros(8, dtype=torch.int64)).shape == (8, 3)
    learner.eval()
    mixed = learner(x, ids)
    for task in range(2):
        torch.testing.assert_close(mixed[task::2], learner(x[task::2], task))


def test_frozen_norms_allow_mixed_tasks_in_training() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    learner = make(net, bn="frozen")
    x, _ = batch(learner)
    assert learner(x, torch.tensor([0, 1] * 4)).shape == (8, 3)


def test_outputs_without_a_class_are_minus_infinity() -> None:
    learner = make(MLP(5, (4,), 4), tasks=0)
    few = learner.add_task("few", classes=[7, 9])
    learner.add_task("all", classes=[0, 1, 2, 3])
    open_ended = learner.add_task("open")
    x, _ = batch(learner)
    assert learner.tasks[few].classes == (7, 9)
    logits = learner(x, few)
    assert (logits[:, 2:] == -torch.inf).all()
    assert torch.isfinite(logits[:, :2]).all()
    assert torch.isfinite(learner(x, 1)).all()
    assert torch.isfinite(learner(x, open_ended)).all()
    learner.begin_task(few)
    y = torch.tensor([0, 1] * 4)
    out = learner.losses(x, y, few)
    shown = logits[:, :2].double()
    expected = -(shown - shown.logsumexp(1, keepdim=True))[torch.arange(8), y].mean()
    assert out.task.item() == pytest.approx(expected.item(), rel=1e-5)
    out.total.backward()
    for parameter in learner.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_activated_is_the_tasks_network_and_ends_with_the_block() -> None:
    learner = make(sparsity=30.0)
    x, _ = batch(learner)
    plain = learner.net(x)
    expected = [learner(x, task) for task in range(2)]
    with learner.activated(0) as net:
        assert net is learner.net
        assert torch.equal(net(x), expected[0])
        with learner.activated(1):
            assert torch.equal(net(x), expected[1])
        assert torch.equal(net(x), expected[0])
    assert torch.equal(learner.net(x), plain)
    with pytest.raises(KeyError), learner.activated(0):
        raise KeyError
    assert torch.equal(learner.net(x), plain)


def test_activated_with_weights_that_were_kept() -> None:
    learner = make(sparsity=30.0)
    x, _ = batch(learner)
    expected = learner(x, 0)
    weights = learner.task_weights(0)
    perturb(learner)
    assert not torch.equal(learner(x, 0), expected)
    with learner.activated(0, weights=weights) as net:
        assert torch.equal(net(x), expected)
    weights["other"] = weights.pop("hidden.0.bias")
    with (
        pytest.raises(ValueError, match=r"lack \['hidden.0.bias'\] and have \['other'\]"),
        learner.activated(0, weights=weights),
    ):
        pass


def test_features_are_what_the_last_layer_reads() -> None:
    learner = make().double().eval()
    perturb(learner)
    x, _ = batch(learner)
    for task in range(3):
        found = learner.features(x, task)
        with learner.activated(task) as net:
            assert torch.equal(found, net.features(x))
    assert not any(module._forward_pre_hooks for module in learner.net.modules())


def test_all_outputs_are_those_of_each_task() -> None:
    learner = make(tasks=0).eval()
    for classes in ([0, 1, 2], [3, 4]):
        learner.add_task(classes=classes)
    perturb(learner)
    x, _ = batch(learner)
    found = learner.all_outputs(x)
    assert found.shape == (2, 8, 3)
    assert not found.requires_grad
    assert torch.equal(found, torch.stack([learner(x, 0), learner(x, 1)]))
    assert found[1, :, 2].eq(-torch.inf).all()


@pytest.mark.parametrize("bn", ["per_task", "batch", "frozen"])
def test_a_blend_of_one_task_is_that_task(bn: str) -> None:
    learner = make(mixed_net(), bn=bn, example_input=torch.zeros(2, 5)).double().eval()
    perturb(learner)
    x, _ = batch(learner)
    for task in range(3):
        with learner.blended(torch.eye(3, dtype=torch.float64)[task]) as net:
            found = net(x)
        torch.testing.assert_close(found, learner(x, task), rtol=1e-12, atol=1e-12)


def test_the_gradient_of_a_blend_is_that_of_its_factors() -> None:
    learner = make(mixed_net(), sparsity=30.0, example_input=torch.zeros(2, 5)).double().eval()
    perturb(learner)
    x, _ = batch(learner)

    def outputs(alpha: Tensor) -> Tensor:
        with learner.blended(alpha) as net:
            return net(x)

    alpha = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        weights = [learner.task_weights(task) for task in range(3)]
        mean = {k: sum(a * w[k] for a, w in zip(alpha, weights, strict=True)) for k in weights[0]}
    with learner.blended(alpha.detach()) as net:
        for name, layer in net.named_modules():
            if name in ("0", "4"):
                torch.testing.assert_close(layer.stand_in().weight, mean[f"{name}.weight"])
    assert torch.autograd.gradcheck(outputs, alpha)
    with pytest.raises(ValueError, match=r"alpha has shape \(2,\); give \(3,\)"):
        outputs(alpha[:2])
