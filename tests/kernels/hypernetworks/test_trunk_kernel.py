"""A trunk by kernels, and its gradients, against float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.hypernetworks import trunk
from hypermask_fast.hypernetworks.full import Hypernetwork
from tests.support.kernel_checks import poisoned

pytest.importorskip("triton")

from hypermask_fast.kernels.hypernetworks import trunk as kernel

ROWS = 7


@pytest.fixture(autouse=True)
def _on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "_on_gpu", lambda table: table.dtype == torch.float32)


def make(widths: Sequence[int], activation: str, device: torch.device) -> Hypernetwork:
    made = Hypernetwork(
        5,
        embedding_dim=widths[0],
        hidden=widths[1:],
        capacity=ROWS,
        activation=activation,
        device=device,
    )
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(2)
    return made


def results(made: Hypernetwork, ids: Tensor, grad: Tensor) -> list[Tensor]:
    made.zero_grad()
    y = made.hidden(ids)
    y.backward(grad.to(y.dtype))
    parameters = (made.embeddings, *made.trunk.parameters())
    return [y.detach(), *(p.grad for p in parameters if p.grad is not None)]


@pytest.mark.parametrize("activation", kernel.ACTIVATIONS)
@pytest.mark.parametrize(
    ("widths", "ids"),
    [
        pytest.param((1, 1), [3], id="one"),
        pytest.param((9, 4, 33), [2, 0, 5], id="rows"),
        pytest.param((130, 25, 25), [6, 1, 2, 3, 0], id="wide"),
        pytest.param((3, 5), [1, 4, 1], id="repeated"),
    ],
)
def test_values_and_gradients_are_those_of_float64(
    widths: tuple[int, ...], ids: list[int], activation: str, device: torch.device
) -> None:
    made, rows = make(widths, activation, device), torch.tensor(ids, device=device)
    assert trunk.takes(made.trunk, made.embeddings, rows)
    grad = torch.randn(len(ids), widths[-1], device=device)
    with poisoned():
        found = results(made, rows, grad)
    expected = results(made.double(), rows, grad)
    assert len(found) == len(expected) == 2 * len(widths)
    for value, exact in zip(found, expected, strict=True):
        # Sums of up to 130 terms and a slope that is off by some roundings.
        size = float(exact.abs().max())
        assert (value.double() - exact).abs().max() <= 2e-6 * max(size, 1e-3)


@pytest.mark.parametrize("activation", kernel.ACTIVATIONS)
def test_activations_keep_their_accuracy_everywhere(activation: str, device: torch.device) -> None:
    x = torch.cat((torch.linspace(-30, 30, 801), torch.logspace(-30, 0, 90)))
    x = torch.cat((x, -x, torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0]))).to(device)
    one, bias = torch.ones(1, 1, device=device), torch.zeros_like(x)
    y = kernel.forward(one, None, x[:, None], bias, activation)[0]
    exact = trunk._FUNCTIONS[activation](x.double())
    torch.testing.assert_close(y.double(), exact, rtol=6e-7, atol=0, equal_nan=True)


def test_a_row_has_the_same_bits_in_any_batch(device: torch.device) -> None:
    made = make((20, 30, 10), "elu", device)
    together = made.hidden(torch.arange(ROWS, device=device))
    for row in range(ROWS):
        assert torch.equal(made.hidden(torch.tensor([row], device=device))[0], together[row])


def test_ids_may_lie_apart(device: torch.device) -> None:
    made = make((4, 3), "tanh", device)
    ids = torch.tensor([2, ROWS, 5, ROWS, 0], device=device)[::2]
    grad = torch.ones(3, 3, device=device)
    for found, expected in zip(
        results(made, ids, grad), results(made, ids.clone(), grad), strict=True
    ):
        assert found.isfinite().all()
        assert torch.equal(found, expected)


def test_no_ids_are_refused_as_elsewhere(device: torch.device) -> None:
    made = make((4, 3), "tanh", device)
    with pytest.raises(ValueError, match=r"ids have shape \(0,\)"):
        made.hidden(torch.tensor([], dtype=torch.int64, device=device))


def test_an_id_without_a_row_gives_no_numbers(device: torch.device) -> None:
    made = make((4, 3), "relu", device)
    ids = torch.tensor([1, ROWS, -1], device=device)
    y = trunk.hidden(made.trunk, made.embeddings, ids)
    assert y.isnan().all(1).tolist() == [False, True, True]


def test_second_derivatives_are_those_of_the_operators() -> None:
    made, ids = make((3, 4), "tanh", torch.device("cpu")), torch.tensor([1, 0])
    seconds = []
    for module in (made, made.double()):
        (first,) = torch.autograd.grad(
            module.hidden(ids).square().sum(), module.embeddings, create_graph=True
        )
        seconds.append(torch.autograd.grad(first.square().sum(), module.embeddings)[0])
    torch.testing.assert_close(seconds[0].double(), seconds[1], rtol=1e-5, atol=1e-6)


def test_what_the_kernels_do_not_know_is_left_to_pytorch() -> None:
    ids = torch.tensor([0])
    made = make((4, 3), "elu", torch.device("cpu"))
    layer, function = made.trunk
    assert trunk.takes(made.trunk, made.embeddings, ids)
    assert not trunk.takes(nn.Sequential(layer, nn.ELU(2.0)), made.embeddings, ids)
    assert not trunk.takes(nn.Sequential(layer, nn.GELU()), made.embeddings, ids)
    assert not trunk.takes(nn.Sequential(layer), made.embeddings, ids)
    assert not trunk.takes(
        nn.Sequential(nn.Linear(4, 3, bias=False), function), made.embeddings, ids
    )
    assert not trunk.takes(made.trunk, made.embeddings, ids.expand(2**19))
    handle = layer.register_forward_hook(lambda *_: None)
    assert not trunk.takes(made.trunk, made.embeddings, ids)
    handle.remove()
    assert trunk.takes(made.trunk, made.embeddings, ids)
    nn.utils.parametrizations.weight_norm(layer)
    assert not trunk.takes(made.trunk, made.embeddings, ids)
