"""Hypernetworks against explicit loops, and the seam through which kept are kept."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.errors import ConfigError
from hypermask_fast.hypernetworks.chunked import ChunkedHypernetwork
from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.hypernetworks.init import Fan, hyperfan_

_ACTIVATIONS: dict[str, Any] = {
    "elu": lambda v: np.where(v > 0, v, np.expm1(v)),
    "relu": lambda v: np.maximum(v, 0),
    "tanh": np.tanh,
}


def numpy_mlp(net: Hypernetwork, v: np.ndarray, activation: str) -> np.ndarray:
    """One input through trunk and head, in float64."""
    for layer in net.trunk:
        if isinstance(layer, nn.Linear):
            w, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            v = _ACTIVATIONS[activation](w @ v + b)
    return net.head.weight.detach().numpy() @ v + net.head.bias.detach().numpy()


@pytest.mark.parametrize(
    ("hidden", "activation"),
    [
        pytest.param((), "elu", id="linear"),
        pytest.param((7,), "elu", id="one-elu"),
        pytest.param((7, 5), "relu", id="two-relu"),
        pytest.param((6, 6, 4), "tanh", id="three-tanh"),
    ],
)
def test_logits_are_an_mlp_of_the_embedding(hidden: tuple[int, ...], activation: str) -> None:
    net = Hypernetwork(
        11,
        embedding_dim=3,
        hidden=hidden,
        capacity=5,
        activation=activation,
        dtype=torch.float64,
    )
    ids = torch.tensor([4, 0, 4])
    expected = [numpy_mlp(net, net.embeddings[i].detach().numpy(), activation) for i in ids]
    np.testing.assert_allclose(net.logits(ids).detach().numpy(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("n", "chunk", "chunks"),
    [
        pytest.param(12, 4, 3, id="divides"),
        pytest.param(13, 4, 4, id="surplus"),
        pytest.param(5, 9, 1, id="larger-than-all"),
        pytest.param(6, 1, 6, id="one-by-one"),
    ],
)
def test_chunks_are_passes_one_after_the_other(n: int, chunk: int, chunks: int) -> None:
    net = ChunkedHypernetwork(
        n,
        embedding_dim=3,
        chunk_size=chunk,
        chunk_embedding_dim=2,
        hidden=(5,),
        capacity=4,
        dtype=torch.float64,
    )
    assert net.chunk_embeddings.shape == (chunks, 2)
    ids = torch.tensor([2, 0])
    expected = np.zeros((2, n))
    for row, i in enumerate(ids):
        task = net.embeddings[i].detach().numpy()
        for k in range(chunks):
            v = np.concatenate([task, net.chunk_embeddings[k].detach().numpy()])
            part = numpy_mlp(net, v, "elu")
            begin, end = k * chunk, min(n, (k + 1) * chunk)
            expected[row, begin:end] = part[: end - begin]
    np.testing.assert_allclose(net.logits(ids).detach().numpy(), expected, rtol=0, atol=1e-14)


def make(kind: str, n: int, hidden: tuple[int, ...], capacity: int = 128) -> Hypernetwork:
    if kind == "full":
        return Hypernetwork(n, embedding_dim=8, hidden=hidden, capacity=capacity)
    return ChunkedHypernetwork(
        n,
        embedding_dim=8,
        chunk_size=n // 7 + 1,
        chunk_embedding_dim=3,
        hidden=hidden,
        capacity=capacity,
    )


@pytest.mark.parametrize("kind", ["full", "chunked"])
@pytest.mark.parametrize("n", [1, 3, 64, 1001, 20_000])
@pytest.mark.parametrize("tasks", [2, 3, 10, 33])
def test_an_unchanged_hypernetwork_has_a_residual_of_exactly_zero(
    kind: str, n: int, tasks: int
) -> None:
    """In float32, where Adam would blow a rounding of 1e-8 up to a step of the learning rate."""
    for hidden in ((), (25, 25), (100,)):
        net = make(kind, n, hidden)
        ids = torch.arange(tasks).flip(0)
        kept = net.kept(ids)
        _, output_reg = net(ids, kept)
        assert output_reg.item() == 0.0
        output_reg.backward()
        for parameter in net.parameters():
            assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.parametrize("kind", ["full", "chunked"])
def test_the_regularizer_is_a_mean_over_earlier_tasks_of_a_sum_of_squares(kind: str) -> None:
    net = make(kind, 40, (9,)).double()
    ids = torch.tensor([5, 0, 3, 1])
    kept = net.kept(ids)
    assert kept is not None
    assert kept.shape == (3, 40)
    assert not kept.requires_grad
    moved = kept + torch.randn(3, 40, dtype=torch.float64)
    logits, output_reg = net(ids, moved)
    expected = np.mean([((kept[j] - moved[j]) ** 2).sum().item() for j in range(3)])
    assert output_reg.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(logits, net.logits(torch.tensor([5]))[0], rtol=0, atol=1e-14)
    output_reg.backward()
    grad = net.embeddings.grad
    assert grad is not None
    moving = grad.abs().sum(1).nonzero().flatten().tolist()
    assert moving == [0, 1, 3]


def test_without_earlier_tasks_there_is_nothing_to_keep() -> None:
    net = make("full", 10, (4,))
    ids = torch.tensor([2])
    assert net.kept(ids) is None
    logits, output_reg = net(ids)
    assert torch.equal(logits, net.logits(ids)[0])
    assert output_reg.item() == 0.0
    assert output_reg.dim() == 0


def test_targets_do_not_follow_the_hypernetwork() -> None:
    net = make("full", 10, (4,))
    ids = torch.tensor([1, 0])
    kept = net.kept(ids)
    assert kept is not None
    before = kept.clone()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert torch.equal(kept, before)
    assert net(ids, kept)[1] > 0


def test_published_initialisation() -> None:
    """N(0, 1) embeddings; uniform layers within 1 / sqrt(fan-in), whose variance is 1 / (3 m)."""
    net = Hypernetwork(5000, embedding_dim=64, hidden=(30,), capacity=400)
    n = net.embeddings.numel()
    assert net.embeddings.mean().item() == pytest.approx(0, abs=5 / math.sqrt(n))
    assert net.embeddings.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / n))
    for layer in (net.trunk[0], net.head):
        assert isinstance(layer, nn.Linear)
        bound = 1 / math.sqrt(layer.in_features)
        for values in (layer.weight, layer.bias):
            assert bound * 0.8 < values.abs().max() <= bound
    # The variance of a sample variance of n uniform numbers is 0.8 sigma^4 / n.
    error = 5 * math.sqrt(0.8 / net.head.weight.numel())
    assert net.head.weight.var().item() * 3 * 30 == pytest.approx(1, abs=error)


def test_hyperfan_variances() -> None:
    """Var = 2 / (c m d) for weights and 1 / m for biases, with c = 2 in a layer with a bias."""
    width, fans = 16, []
    for fan_in, has_bias in ((50, True), (12, False), (27, True)):
        fans.append(Fan(40 * fan_in, fan_in, False, has_bias))
        if has_bias:
            fans.append(Fan(400, fan_in, True, True))
    net = Hypernetwork(sum(fan.size for fan in fans), embedding_dim=9, hidden=(20, width))
    hyperfan_(net, fans)
    expected = [2 / (2 * width * 50), 1 / width, 2 / (width * 12), 2 / (2 * width * 27), 1 / width]
    blocks = net.head.weight.split([fan.size for fan in fans])
    for block, variance in zip(blocks, expected, strict=True):
        assert block.abs().max() <= math.sqrt(3 * variance) * (1 + 1e-6)
        error = 5 * math.sqrt(0.8 / block.numel())
        assert block.var().item() / variance == pytest.approx(1, abs=error)
    for layer in net.trunk:
        if isinstance(layer, nn.Linear):
            bound = math.sqrt(6 / layer.in_features)
            assert bound * 0.8 < layer.weight.abs().max() <= bound
            assert not layer.bias.any()
    assert not net.head.bias.any()


def test_hyperfan_is_refused_for_chunks() -> None:
    net = make("chunked", 10, (4,))
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(ConfigError, match=r"hyperfan.*chunked.*head='full'"):
        hyperfan_(net, [Fan(10, 1, True, True)])
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"embedding_dim": 0}, "embedding_dim=0 .*; give at least 1", id="embedding"),
        pytest.param({"capacity": 0}, "capacity=0", id="capacity"),
        pytest.param({"hidden": (5, -1)}, r"hidden=\(5, -1\)", id="hidden"),
        pytest.param({"hidden": 100}, "hidden=100 .*; give a list", id="hidden-number"),
        pytest.param({"activation": "elo"}, "'elo' is .* mean 'elu'", id="activation"),
        pytest.param({"chunk_size": 0}, "chunk_size=0", id="chunk"),
        pytest.param({"chunk_embedding_dim": 0}, "chunk_embedding_dim=0", id="chunk-embedding"),
        pytest.param({"num_outputs": 0}, "num_outputs=0", id="outputs"),
    ],
)
def test_wrong_sizes_are_named(options: dict[str, Any], message: str) -> None:
    defaults = {"num_outputs": 9, "embedding_dim": 2, "chunk_size": 3, "chunk_embedding_dim": 2}
    with pytest.raises(ConfigError, match=message):
        ChunkedHypernetwork(**{**defaults, **options})


def test_dtype_device_and_repr() -> None:
    net = ChunkedHypernetwork(
        9,
        embedding_dim=2,
        chunk_size=4,
        chunk_embedding_dim=2,
        capacity=6,
        device="meta",
        dtype=torch.bfloat16,
    )
    tensors: list[Tensor] = list(net.parameters())
    assert {p.device.type for p in tensors} == {"meta"}
    assert {p.dtype for p in tensors} == {torch.bfloat16}
    assert net.capacity == 6
    assert "num_outputs=9, capacity=6, chunks=3x4" in repr(net)
