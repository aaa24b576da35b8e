"""HyperMask's training against an independent computation in numpy, option by option."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from hypermask_fast import unconvert
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP, ResNet, ZenkeNet
from tests.support.hypermask_cases import batch, make, perturb, train, train_step
from tests.support.hypermask_cases import tables as tables_of

Array = npt.NDArray[np.float64]


def array(value: Tensor) -> Array:
    return value.detach().double().numpy().copy()


def oracle_logits(learner: HyperMask, task: int) -> Array:
    """z = h(e_t), flat."""
    v = array(learner.hypernetwork.embeddings[task])
    for layer in learner.hypernetwork.trunk:
        if isinstance(layer, nn.Linear):
            v = array(layer.weight) @ v + array(layer.bias)
            v = np.where(v > 0, v, np.expm1(v))
    head = learner.hypernetwork.head
    return array(head.weight) @ v + array(head.bias)


def oracle_masks(z: Array, weights: Sequence[Array], p: float) -> list[Array]:
    """|tanh z| of each tensor, below its percentile 0, the last tensor without a percentile."""
    masks, offset = [], 0
    for i, w in enumerate(weights):
        m = np.abs(np.tanh(z[offset : offset + w.size].reshape(w.shape)))
        offset += w.size
        if i + 1 < len(weights):
            m = np.where(m >= np.percentile(m, p), m, 0.0)
        masks.append(m)
    return masks


def oracle_forward(x: Array, weights: Sequence[Array], masks: Sequence[Array]) -> Array:
    """A ReLU network of W1, b1, ..., WL, bL, all masked but bL."""
    for i in range(0, len(weights), 2):
        last = i + 2 == len(weights)
        bias = weights[i + 1] * (1 if last else masks[i + 1])
        x = x @ (weights[i] * masks[i]).T + bias
        x = x if last else np.maximum(x, 0)
    return x


def oracle_cross_entropy(logits: Array, y: Tensor) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-np.mean([log_softmax[i, label] for i, label in enumerate(y.tolist())]))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"sparsity": 30.0, "beta": 0.7, "lam": 0.2}, id="masked-drift"),
        pytest.param({"sparsity": 30.0, "lam": 1.0, "masked_l1": False}, id="plain-drift"),
        pytest.param({"sparsity": 100.0, "lam": 0.5}, id="everything-removed"),
        pytest.param({"beta": 0.0, "lam": 0.0, "sparsity": 50.0}, id="no-regularizers"),
    ],
)
def test_losses_of_the_first_three_tasks_by_hand(options: dict[str, Any]) -> None:
    learner = make(MLP(5, (4, 6), 3).double(), **options)
    p, beta, lam = learner.sparsity, learner.beta, learner.lam
    for t in range(3):
        kept = [oracle_logits(learner, j) for j in range(t)]
        previous = [array(w) for w in learner.net.parameters()]
        learner.begin_task(t)
        perturb(learner)
        x, y = batch(learner)
        out = learner.losses(x, y, t)

        weights = [array(w) for w in learner.net.parameters()]
        masks = oracle_masks(oracle_logits(learner, t), weights, p)
        logits = oracle_forward(array(x), weights, masks)
        task_loss = oracle_cross_entropy(logits, y)
        squares = [float(((oracle_logits(learner, j) - kept[j]) ** 2).sum()) for j in range(t)]
        drift = 0.0
        if t and lam:
            for w, old, m in zip(weights, previous, masks, strict=True):
                drift += float((np.abs(w - old) * (m if learner.masked_l1 else 1)).sum())
        total = task_loss + (beta / t**2 * sum(squares) if t else 0.0) + lam * drift

        np.testing.assert_allclose(array(out.logits), logits, rtol=0, atol=1e-12)
        assert out.task.item() == pytest.approx(task_loss, rel=1e-12)
        assert out.output_reg.item() == pytest.approx(sum(squares) / max(1, t), rel=1e-12)
        assert out.weight_reg.item() == pytest.approx(drift, rel=1e-12)
        assert out.total.item() == pytest.approx(total, rel=1e-12)
        assert all(value.dim() == 0 for value in out.scalars().values())
        learner.end_task()


def test_masks_and_masked_weights_by_hand() -> None:
    learner = make(MLP(5, (4, 6), 3).double(), sparsity=40.0)
    learner(batch(learner)[0], 0)
    weights = {name: array(w) for name, w in learner.net.named_parameters()}
    for task in range(3):
        for p in (None, 0.0, 40.0, 75.0):
            masks = learner.masks(task, sparsity=p)
            products = learner.task_weights(task, sparsity=p)
            z = oracle_logits(learner, task)
            expected = oracle_masks(z, list(weights.values()), 40.0 if p is None else p)
            assert list(products) == list(weights)
            assert list(masks) == list(weights)[:-1]
            for (name, w), m in zip(weights.items(), expected, strict=True):
                if name in masks:
                    np.testing.assert_allclose(array(masks[name]), m, rtol=1e-12)
                    assert ((array(masks[name]) == 0) == (m == 0)).all()
                    w = w * m
                np.testing.assert_allclose(array(products[name]), w, rtol=1e-12)


def test_the_exempt_logits_train_through_the_regularizers_only() -> None:
    """The logits of b_L are no mask; masked drift uses them, plain drift does not."""
    for masked_l1 in (True, False):
        learner = make(MLP(5, (4,), 3).double(), masked_l1=masked_l1, sparsity=30.0)
        own = slice(-3, None)
        for t in range(2):
            learner.begin_task(t)
            with torch.no_grad():
                for parameter in learner.net.parameters():
                    parameter.add_(0.3)
            learner.losses(*batch(learner), t).total.backward()
            grad = learner.hypernetwork.head.bias.grad
            assert grad is not None
            # In the second task the residual is still 0, so only the drift can reach them.
            assert bool(grad[own].any()) == (t == 1 and masked_l1)
            assert grad[:-3].any()
            learner.zero_grad()
            learner.end_task()


def test_removed_weights_have_no_gradient() -> None:
    learner = make(MLP(5, (4,), 3).double(), sparsity=50.0)
    learner.begin_task(0)
    x, y = batch(learner)
    learner.losses(x, y, 0).total.backward()
    masks = learner.masks(0)
    offset = 0
    head = learner.hypernetwork.head.bias.grad
    assert head is not None
    for name, parameter in learner.net.named_parameters():
        if name in masks:
            removed = masks[name] == 0
            z_grad = head[offset : offset + parameter.numel()].view(parameter.shape)
            assert parameter.grad is not None
            assert removed.any()
            assert not parameter.grad[removed].any()
            assert not z_grad[removed].any()
        offset += parameter.numel()


def test_the_sparsity_ramps_in_the_first_task_only() -> None:
    learner = make(sparsity=60.0)
    learner.begin_task(0, steps=4)
    for i in range(1, 7):
        out = learner.losses(*batch(learner), 0)
        assert learner.step_sparsity == pytest.approx(60.0 * min(i, 4) / 4)
        weight = learner.masks(0, sparsity=learner.step_sparsity)["hidden.0.weight"]
        zeros = math.ceil(round(learner.step_sparsity / 100 * 19, 9))
        assert (weight == 0).sum() == zeros
        assert torch.isfinite(out.total)
        # Evaluation always uses the full percentage.
        assert (learner.masks(0)["hidden.0.weight"] == 0).sum() == 12
    learner.end_task()
    learner.begin_task(1, steps=4)
    for _ in range(2):
        learner.losses(*batch(learner), 1)
        assert learner.step_sparsity == 60.0
    learner.end_task()


def test_a_ramp_is_what_the_step_uses() -> None:
    learner = make(sparsity=60.0, dropout="off")
    learner.begin_task(0, steps=3)
    x, y = batch(learner)
    for i in range(1, 4):
        out = learner.losses(x, y, 0)
        weights = learner.task_weights(0, sparsity=60.0 * i / 3)
        with learner.activated(0, weights=weights) as net:
            assert torch.equal(net(x), out.logits)


def test_earlier_embeddings_train_and_later_rows_never_move() -> None:
    learner = make(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), beta=1.0)
    start = {id(table): table.detach().clone() for table in tables_of(learner)}
    assert len(start) == 3
    for task in range(3):
        before = learner.hypernetwork.embeddings.detach().clone()
        train(learner, task)
        moved = (learner.hypernetwork.embeddings != before).any(1)
        assert moved.tolist() == [row <= task for row in range(5)]
    for table in tables_of(learner):
        assert torch.equal(table[3:], start[id(table)][3:])


NETS: list[Any] = [
    pytest.param(lambda: MLP(5, (4,), 3), (5,), {}, id="mlp"),
    pytest.param(lambda: MLP(30, (41, 23), 7), (30,), {"sparsity": 30.0}, id="wide-mlp"),
    pytest.param(lambda: ResNet(1, 1, 3), (3, 4, 4), {"bn": "batch", "hidden": (3,)}, id="resnet"),
    pytest.param(lambda: ZenkeNet(3), (3, 32, 32), {"hidden": (1,)}, id="zenkenet"),
    pytest.param(
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Dropout(), nn.Linear(12, 3)),
        (1, 4, 4),
        {"hidden": ()},
        id="conv-linear-hypernetwork",
    ),
    pytest.param(
        lambda: MLP(9, (8,), 3),
        (9,),
        {"head": "chunked", "chunk_size": 20, "chunk_embedding_dim": 4},
        id="chunked",
    ),
    pytest.param(
        lambda: MLP(9, (8,), 3), (9,), {"train_target": False, "init": "hyperfan"}, id="hyperfan"
    ),
]


@pytest.mark.parametrize(("net", "shape", "options"), NETS)
def test_a_task_starts_with_a_residual_of_exactly_zero_in_float32(
    net: Callable[[], nn.Module], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    learner = make(net(), **{"lam": 0.01, **options})
    for task in range(3):
        first, *later = train(learner, task, shape=shape)
        assert first.output_reg.item() == 0.0
        assert first.weight_reg.item() == 0.0
        for out in later:
            assert (out.output_reg.item() > 0) == (task > 0)
            assert (out.weight_reg.item() > 0) == (task > 0 and learner.train_target)


def test_targets_and_reference_weights_stay_as_the_task_found_them() -> None:
    learner = make()
    train(learner, 0)
    kept, weights = oracle_logits(learner, 0), learner.net.state_dict()
    flat = np.concatenate([array(w).ravel() for w in weights.values()])
    learner.begin_task(1)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.1)
    for _ in range(3):
        train_step(learner, optimizer, 1, *batch(learner))
        tensors, _ = learner.task_state()
        np.testing.assert_allclose(array(tensors["targets"])[0], kept, rtol=1e-5, atol=1e-6)
        assert (array(tensors["previous"]) == flat).all()
    learner.end_task()
    assert learner.task_state()[0] == {}


def test_a_task_learned_again_is_not_its_own_target() -> None:
    learner = make(sparsity=20.0)
    for task in (0, 1, 2):
        train(learner, task)
    learner.begin_task(1, steps=9)
    tensors, state = learner.task_state()
    assert state["ids"] == [1, 0, 2]
    assert len(tensors["targets"]) == 2
    out = learner.losses(*batch(learner), 1)
    assert out.output_reg.item() == 0.0
    assert learner.step_sparsity == 20.0
    learner.end_task()
    assert learner.learned == (0, 1, 2)


@pytest.mark.parametrize("bn", ["per_task", "batch", "frozen"])
def test_without_train_target_the_network_stays_bit_identical(bn: str) -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    required = [p.requires_grad for p in net.parameters()]
    learner = make(net, train_target=False, bn=bn)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for task in range(2):
        outs = train(learner, task, steps=3, weight_decay=0.1)
        assert all(out.weight_reg.item() == 0.0 for out in outs)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    learner.begin_task(2)
    learner.losses(*batch(learner), 2).total.backward()
    assert all(p.grad is None for p in net.parameters())
    assert learner.hypernetwork.head.weight.grad is not None
    assert [p.requires_grad for p in unconvert(net).parameters()] == required


def drops(learner: HyperMask, x: Tensor, run: Callable[[], Tensor]) -> bool:
    """Whether dropout acted: the logits differ from those of evaluation."""
    logits = run()
    learner.eval()
    with torch.no_grad():
        plain = learner(x, 0)
    learner.train()
    return not torch.equal(logits, plain)


@pytest.mark.parametrize(
    ("dropout", "steps", "forward"),
    [
        pytest.param("always", [True, True, True], True, id="always"),
        pytest.param("first_step", [True, False, False], False, id="first-step"),
        pytest.param("off", [False, False, False], False, id="off"),
    ],
)
def test_dropout(dropout: str, steps: list[bool], forward: bool) -> None:
    net = nn.Sequential(nn.Linear(5, 30), nn.Dropout(0.5), nn.Linear(30, 3))
    learner = make(net, dropout=dropout)
    x, y = batch(learner)
    for _ in range(2):
        learner.begin_task(0)
        seen = [drops(learner, x, lambda: learner.losses(x, y, 0).logits) for _ in range(3)]
        assert seen == steps
        learner.end_task()
        assert drops(learner, x, lambda: learner(x, 0)) == forward
        assert net[1].training
    learner.eval()
    learner.begin_task(0)
    assert not drops(learner.eval(), x, lambda: learner.losses(x, y, 0).logits)
