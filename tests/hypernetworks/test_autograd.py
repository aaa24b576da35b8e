"""The head as an operation against the plain one, whose gradients are dense."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Thread

import pytest
import torch
from torch import Tensor, nn

from hypermask_fast import reference
from hypermask_fast.backends.choice import backend, requested
from hypermask_fast.head import frozen, tiles
from hypermask_fast.hypernetworks import autograd, autograd_frozen
from hypermask_fast.hypernetworks.autograd import head_logits
from hypermask_fast.native import library
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.optim.factored_grad import FactoredGrad
from tests.support.hypermask_cases import batch, make, train

N, H, K = 50, 10, 3


class _Head:
    """A head and a trunk, twice the same: ours and the plain one."""

    def __init__(self, k: int = K, dtype: torch.dtype = torch.float64) -> None:
        self.x = torch.randn(k, H, dtype=dtype)
        trunk, weight, bias = (torch.randn(*s, dtype=dtype) for s in ((H, H), (N, H), (N,)))
        self.ours, self.plain = (
            [nn.Parameter(t.clone()) for t in (weight, bias, trunk)] for _ in range(2)
        )

    def logits(self) -> tuple[Tensor, Tensor]:
        """Of ours, of the plain one."""
        ours, plain = self.ours, self.plain
        return (
            head_logits(ours[0], ours[1], torch.tanh(self.x @ ours[2])),
            reference.mask_logits(plain[0], plain[1], torch.tanh(self.x @ plain[2])),
        )

    def check(self, factored: bool = True) -> None:
        assert isinstance(self.ours[0].grad, FactoredGrad) is factored
        for ours, plain in zip(self.ours, self.plain, strict=True):
            if plain.grad is None:
                assert ours.grad is None
            else:
                assert ours.grad is not None
                # Two sums of at most N terms in another order, after one another.
                tolerance = 4 * N * torch.finfo(plain.dtype).eps * float(plain.grad.abs().max())
                torch.testing.assert_close(ours.grad.to_dense(), plain.grad, rtol=0, atol=tolerance)

    @property
    def grad(self) -> FactoredGrad:
        assert isinstance(self.ours[0].grad, FactoredGrad)
        return self.ours[0].grad


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda z: z.square().mean(), id="dense"),
        pytest.param(lambda z: z.sum(), id="stride-0"),
        pytest.param(lambda z: z.sum(0).expand(4, -1).sum(), id="expanded-rows"),
        pytest.param(lambda z: (z.t() * torch.arange(K)).tanh().sum(), id="transposed"),
        pytest.param(lambda z: z[0, 3:7].sum() + z[1:].square().sum(), id="sliced"),
        pytest.param(lambda z: torch.cat((z, 2 * z), 1)[:, ::2].tanh().sum(), id="strided"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_the_plain_head(loss: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    head = _Head(dtype=dtype)
    for z in head.logits():
        assert (z.shape, z.dtype) == ((K, N), dtype)
        loss(z).backward()
    torch.testing.assert_close(*head.logits())
    head.check()
    assert head.grad.dz.is_contiguous()


@pytest.mark.parametrize(
    ("k", "factored"),
    # 8 (50 + 10) < 500 <= 9 (50 + 10).
    [
        pytest.param(8, True, id="factors-smaller"),
        pytest.param(9, False, id="dense-smaller"),
        pytest.param(H + 5, False, id="more-rows-than-width"),
    ],
)
def test_is_dense_where_that_is_smaller(k: int, factored: bool) -> None:
    head = _Head(k)
    for z in head.logits():
        z.square().sum().backward()
    head.check(factored)


@pytest.mark.parametrize("frozen", [0, 1, 2], ids=["weight", "bias", "hidden"])
def test_computes_no_gradient_that_nobody_wants(
    frozen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = _Head()
    unwanted = {
        0: "hypermask_fast.hypernetworks.autograd.FactoredGrad",
        2: "hypermask_fast.head.passes.hidden_grad",
    }
    if frozen in unwanted:
        monkeypatch.setattr(unwanted[frozen], None)
    for parameters in (head.ours, head.plain):
        parameters[frozen].requires_grad_(False)
    for z in head.logits():
        z.square().sum().backward()
    monkeypatch.undo()
    head.check(factored=frozen != 0)


def test_without_gradients() -> None:
    head = _Head()
    with torch.no_grad():
        ours, plain = head.logits()
    assert not ours.requires_grad
    torch.testing.assert_close(ours, plain)


def test_numerical_gradient() -> None:
    weight, bias, hidden = torch.randn(5, 4), torch.randn(5), torch.randn(2, 4)
    inputs = [t.double().requires_grad_() for t in (weight, bias, hidden)]
    # gradcheck writes to its gradients, so that of the weight arrives dense.
    scale = torch.ones(5, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w, b, h: head_logits(w * scale, b, h), inputs)


def test_second_derivatives() -> None:
    head = _Head()
    found, wanted = (
        torch.autograd.grad(z.square().sum(), parameters, create_graph=True)
        for z, parameters in zip(head.logits(), (head.ours, head.plain), strict=True)
    )
    for first, parameters in ((found, head.ours), (wanted, head.plain)):
        torch.stack([g.square().sum() for g in first]).sum().backward()
        assert all(p.grad is not None for p in parameters)
    for ours, plain in zip([*found, *head.ours], [*wanted, *head.plain], strict=True):
        torch.testing.assert_close(ours, plain)
    for ours, plain in zip(head.ours, head.plain, strict=True):
        torch.testing.assert_close(ours.grad, plain.grad)


def test_a_head_changed_after_the_forward_is_noticed() -> None:
    head = _Head()
    z, _ = head.logits()
    with torch.no_grad():
        head.ours[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize("width", [H - 1, H + 1])
def test_a_hidden_of_another_width_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=rf"hidden has shape \(3, {width}\)"):
        head_logits(torch.zeros(N, H), torch.zeros(N), torch.zeros(K, width))


def test_keeps_its_dtype_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch's products follow autocast, native ones never do.
    monkeypatch.setenv("HYPERMASK_FAST_NATIVE", "0")
    head = _Head(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        weight, bias, trunk = head.ours
        hidden = head.x @ trunk
        assert hidden.dtype == torch.bfloat16
        z = head_logits(weight, bias, hidden)
        assert torch.equal(z, head_logits(weight, bias, hidden.float()))
        z.square().sum().backward()
        assert head.grad.to_dense().dtype == torch.float32
    exact = hidden.double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(z.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        head.grad.to_dense().double(), (2 * exact).t() @ hidden.double(), rtol=1e-4, atol=1e-4
    )


def test_a_second_backward_accumulates() -> None:
    head = _Head()
    losses = [(z.square().sum(), z.sum()) for z in head.logits()]
    for first, _ in losses:
        first.backward(retain_graph=True)
    grad = head.grad
    for _, second in losses:
        second.backward()
    head.check()
    # The same object, and the same embeddings need no second row.
    assert head.grad is grad
    assert len(grad.dz) == K
    head.x.mul_(-0.5)
    for z in head.logits():
        z.exp().sum().backward()
    head.check()
    assert head.grad is grad
    assert len(grad.dz) == 2 * K


def test_two_uses_in_one_graph_accumulate() -> None:
    head = _Head()
    for parameters, z in zip((head.ours, head.plain), head.logits(), strict=True):
        other = head_logits if parameters is head.ours else reference.mask_logits
        (z.sum() + other(parameters[0], parameters[1], head.x).square().sum()).backward()
    head.check()
    assert len(head.grad.dz) == 2 * K


@pytest.mark.parametrize("first", ["factored", "dense"])
def test_a_dense_gradient_of_the_same_weight_is_added(first: str) -> None:
    head = _Head()
    for parameters, z in zip((head.ours, head.plain), head.logits(), strict=True):
        losses = [z.exp().sum(), parameters[0].square().sum()]
        for loss in losses if first == "factored" else losses[::-1]:
            loss.backward()
    assert isinstance(head.ours[0].grad, FactoredGrad) is (first == "factored")
    head.check(factored=first == "factored")


def test_a_dense_gradient_in_the_same_graph_is_added() -> None:
    head = _Head()
    for parameters, z in zip((head.ours, head.plain), head.logits(), strict=True):
        (z.exp().sum() + parameters[0].square().sum()).backward()
    head.check(factored=False)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("foreach", [False, True])
def test_zero_grad(set_to_none: bool, foreach: bool) -> None:
    head = _Head()
    for seed in range(2):
        head.x = torch.randn(K, H, generator=torch.Generator().manual_seed(seed)).double()
        for parameters, z in zip((head.ours, head.plain), head.logits(), strict=True):
            torch.optim.SGD(parameters, foreach=foreach).zero_grad(set_to_none)
            z.exp().sum().backward()
        head.check()
        assert len(head.grad.dz) == K


def test_module_zero_grad() -> None:
    layer = nn.Linear(H, N)
    head_logits(layer.weight, layer.bias, torch.randn(K, H)).sum().backward()
    layer.zero_grad(set_to_none=False)
    grad = layer.weight.grad
    assert isinstance(grad, FactoredGrad)
    assert not grad.to_dense().any()


def test_hooks_get_factors() -> None:
    head = _Head()
    seen: list[object] = []
    head.ours[0].register_hook(lambda g: seen.append(g) or 2 * g)
    head.plain[0].register_hook(lambda g: 2 * g)
    head.ours[0].register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    for z in head.logits():
        z.exp().sum().backward()
    head.check()
    before, after = seen
    assert isinstance(before, FactoredGrad)
    assert after is head.grad
    torch.testing.assert_close(2 * before.to_dense(), head.grad.to_dense())
    # What a hook kept is not what later steps write to.
    head.grad.zero_()
    assert before.to_dense().all()


def test_a_gradient_that_a_hook_kept_is_not_accumulated_into() -> None:
    head = _Head()
    kept: list[Tensor] = []
    head.ours[0].register_hook(kept.append)
    for scale in (1.0, 3.0):
        (scale * head.logits()[0]).exp().sum().backward()
    torch.testing.assert_close(kept[0].to_dense() + kept[1].to_dense(), head.grad.to_dense())


def test_autograd_grad_returns_the_factors() -> None:
    head = _Head()
    (ours,) = torch.autograd.grad(head.logits()[0].exp().sum(), head.ours[:1])
    (plain,) = torch.autograd.grad(head.logits()[1].exp().sum(), head.plain[:1])
    assert isinstance(ours, FactoredGrad)
    torch.testing.assert_close(ours.to_dense(), plain)


def test_the_gradient_keeps_no_graph_alive() -> None:
    head = _Head()
    head.logits()[0].sum().backward()
    assert head.grad.hidden.grad_fn is None
    assert head.grad.dz.grad_fn is None


def test_an_unchanged_head_has_residuals_of_exactly_zero() -> None:
    head = _Head(dtype=torch.float32)
    with torch.no_grad():
        targets = head.logits()[0]
    assert torch.equal(head.logits()[0], targets)


@pytest.mark.parametrize("targets", ["full", "frozen_head"])
@pytest.mark.parametrize("in_backward", [False, True])
def test_a_backward_pass_has_the_backend_of_its_forward(
    in_backward: bool, targets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in another thread: autograd has one for each GPU."""
    learner = make(beta=0.5, targets=targets)
    train(learner, 0)
    learner.begin_task(1)
    optimizer = FactoredAdam(learner.parameters(), step_in_backward=in_backward)
    optimizer.zero_grad()
    asked: list[str] = []

    def full_precision(device: torch.device) -> AbstractContextManager[None]:
        asked.append(requested())
        return nullcontext()

    with backend("reference"):
        losses = learner.losses(*batch(learner), 1, optimizer=optimizer)
        for module in (autograd, autograd_frozen, frozen, tiles):
            monkeypatch.setattr(module, "full_precision", full_precision)
        monkeypatch.setattr(library, "load", lambda: None)
        thread = Thread(target=losses.total.backward)
        thread.start()
        thread.join()
    assert set(asked) == {"reference"}
    optimizer.step()
