"""The passes over the head, native and in PyTorch, against float64 formulas and torch.optim."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hypermask_fast.head import passes
from hypermask_fast.head.frozen import freeze
from hypermask_fast.head.types import Head, HeadStep, KeptSample, Moments
from tests.support.head_cases import (
    adam_rows,
    copied,
    head_of,
    make_head,
    options_of,
    step,
    tensors,
    torch_step,
)
from tests.support.pass_cases import BOTH, SIZES, dot_bound


@BOTH
@pytest.mark.parametrize(("rows", "width", "count"), SIZES)
def test_logits_and_hidden_gradient(
    backend: str, rows: int, width: int, count: int, dtype: torch.dtype
) -> None:
    head, hidden = make_head(rows, width, dtype), torch.randn(count, width, dtype=dtype)
    z = passes.logits(head, hidden)
    exact = hidden.double() @ head.weight.t().double() + head.bias.double()
    ones = torch.ones(count, 1, dtype=dtype)
    bound = dot_bound(
        torch.cat((hidden, ones), 1), torch.cat((head.weight.t(), head.bias[None])), width + 1
    )
    assert ((z.double() - exact).abs() <= bound).all()

    dz = torch.randn(count, rows, dtype=dtype)
    gradient = passes.hidden_grad(head.weight, dz)
    error = (gradient.double() - dz.double() @ head.weight.double()).abs()
    assert (error <= dot_bound(dz, head.weight, rows)).all()
    assert gradient.dtype == z.dtype == dtype


def test_logits_fill_out(backend: str) -> None:
    head, hidden = make_head(50, 6), torch.randn(3, 6, dtype=torch.float64)
    out = torch.full((3, 50), 7.0, dtype=torch.float64)
    assert passes.logits(head, hidden, out) is out
    torch.testing.assert_close(out, hidden @ head.weight.t() + head.bias)


@pytest.mark.parametrize(("rows", "width", "count"), SIZES)
def test_step_matches_autograd_and_torch(backend: str, rows: int, width: int, count: int) -> None:
    head, hidden = make_head(rows, width), torch.randn(count, width, dtype=torch.float64)
    dz = torch.randn(rows, dtype=torch.float64)
    targets = torch.randn(count - 1, rows, dtype=torch.float64)
    expected = copied(head)
    gradient, regularizer = torch_step(expected, dz, hidden, targets, 0.3)
    ours = step(head, dz, hidden, targets, coefficient=0.3)
    torch.testing.assert_close(ours, (gradient, regularizer), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(tensors(head), tensors(expected), rtol=1e-11, atol=1e-11)


OPTIONS = [
    pytest.param({}, id="adam"),
    pytest.param({"weight_decay": 0.1}, id="coupled-decay"),
    pytest.param({"weight_decay": 0.1, "decoupled": True}, id="adamw"),
    pytest.param({"weight_decay": 0.1, "maximize": True}, id="maximize"),
    pytest.param({"grad_scale": 0.25}, id="grad-scale"),
    pytest.param({"beta1": 0.3}, id="lerp-from-the-end"),
    pytest.param({"beta1": 0.0, "step": 1}, id="first-step"),
    pytest.param({"eps": 0.1, "step": 1000}, id="large-eps"),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_options_match_torch(backend: str, options: dict[str, Any]) -> None:
    head, hidden = make_head(41, 5), torch.randn(3, 5, dtype=torch.float64)
    dz, targets = torch.randn(41, dtype=torch.float64), torch.randn(2, 41, dtype=torch.float64)
    alone, expected = copied(head), copied(head)
    torch_step(expected, dz, hidden, targets, 0.5, **options)
    z = hidden @ alone.weight.t() + alone.bias
    factors = torch.cat((dz[None], 0.5 * (z[1:] - targets)))
    step(head, dz, hidden, targets, coefficient=0.5, **options)
    torch.testing.assert_close(tensors(head), tensors(expected), rtol=1e-11, atol=1e-11)

    adam_rows(alone, factors, hidden, **options)
    matrices, wanted = ((of.weight, *of.moments) for of in (alone, expected))
    torch.testing.assert_close(matrices, wanted, rtol=1e-11, atol=1e-11)


def test_float32_products_are_as_accurate_as_torchs(backend: str) -> None:
    head, hidden = make_head(3000, 100, torch.float32), torch.randn(10, 100)
    dz = torch.randn(10, 3000)
    exact = hidden.double() @ head.weight.t().double() + head.bias.double()
    torchs = torch.nn.functional.linear(hidden, head.weight, head.bias)
    ours = passes.logits(head, hidden)
    assert (ours - exact).abs().max() <= 2 * (torchs - exact).abs().max()
    exact = dz.double() @ head.weight.double()
    ours, torchs = passes.hidden_grad(head.weight, dz), dz @ head.weight
    assert (ours - exact).abs().max() <= 2 * (torchs - exact).abs().max()


@pytest.mark.parametrize("decoupled", [False, True], ids=["Adam", "AdamW"])
def test_fifty_float32_steps_are_as_accurate_as_torchs(backend: str, decoupled: bool) -> None:
    start = 0.2 * torch.randn(300, 60)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    dense = [torch.nn.Parameter(start.clone().to(t)) for t in (torch.float32, torch.float64)]
    optimizers = [kind([p], lr=1e-3, weight_decay=0.01, foreach=False) for p in dense]
    ours = (start.clone(), torch.zeros_like(start), torch.zeros_like(start))
    head = Head(ours[0], moments=Moments(*ours[1:]))
    options: Any = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    for count in range(1, 51):
        dz, hidden = torch.randn(4, 300), torch.randn(4, 60)
        adam_rows(head, dz, hidden, step=count, decoupled=decoupled, **options)
        for parameter, optimizer in zip(dense, optimizers, strict=True):
            parameter.grad = dz.t().to(parameter.dtype) @ hidden.to(parameter.dtype)
            optimizer.step()
    for i, name in enumerate(("weight", "exp_avg", "exp_avg_sq")):
        torchs, exact = (
            (parameter if i == 0 else optimizer.state[parameter][name]).detach()
            for parameter, optimizer in zip(dense, optimizers, strict=True)
        )
        assert (ours[i] - exact).abs().max() <= 2 * (torchs - exact).abs().max(), name


@BOTH
@pytest.mark.parametrize("earlier", [1, 2, 3, 4, 8, 9, 16, 20])
def test_an_unchanged_head_has_no_residual(backend: str, earlier: int, dtype: torch.dtype) -> None:
    head = make_head(1003, 26, dtype)
    hidden = torch.randn(earlier + 1, 26, dtype=dtype)
    for tensor in tensors(head)[2:]:
        tensor.zero_()
    before = copied(head)
    targets = passes.logits(head, hidden)[1:].clone()
    gradient, regularizer = step(
        head, torch.zeros(1003, dtype=dtype), hidden, targets, coefficient=1.0
    )
    assert regularizer.item() == 0.0
    assert not gradient.any()
    assert all(
        torch.equal(now, then) for now, then in zip(tensors(head), tensors(before), strict=True)
    )


@BOTH
@pytest.mark.parametrize("width", [1, 3, 100, 131])
def test_native_logits_have_the_same_bits_for_any_count(
    compiled: None, width: int, dtype: torch.dtype
) -> None:
    head, hidden = make_head(71, width, dtype), torch.randn(23, width, dtype=dtype)
    together = passes.logits(head, hidden)
    for count in (1, 2, 3, 5, 9, 17):
        for first in range(0, 23 - count, count):
            part = hidden[first : first + count]
            alone = passes.logits(head, part)
            assert torch.equal(alone, together[first : first + count])


def test_native_results_do_not_depend_on_threads(compiled: None) -> None:
    start, hidden = make_head(5003, 20, torch.float32), torch.randn(4, 20)
    dz, targets = torch.randn(5003), torch.randn(3, 5003)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        head = copied(start)
        try:
            z = passes.logits(head, hidden)
            results.append((z, *step(head, dz, hidden, targets, coefficient=0.1), *tensors(head)))
        finally:
            torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@BOTH
def test_pytorch_gives_the_native_numbers_to_rounding(
    compiled: None, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    start, hidden = make_head(1003, 100, dtype), torch.randn(5, 100, dtype=dtype)
    dz, targets = torch.randn(1003, dtype=dtype), torch.randn(4, 1003, dtype=dtype)
    heads, results = (copied(start), copied(start)), []
    for head, switch in zip(heads, "10", strict=True):
        monkeypatch.setenv("HYPERMASK_FAST_NATIVE", switch)
        results.append(step(head, dz, hidden, targets, coefficient=0.1))
    # Sums of 1003 terms of size up to 1e2, and moments that are not small.
    tolerance = 1e4 * torch.finfo(dtype).eps
    torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(tensors(heads[0]), tensors(heads[1]), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_the_gradient_of_a_bias_that_another_steps(
    backend: str, dtype: torch.dtype, is_frozen: bool
) -> None:
    """The head and the results are those of a step of both, and the bias stays."""
    head, old = make_head(1035, 5), make_head(1035, 5)
    head = head._replace(moments=Moments(*(m.to(dtype) for m in head.moments or ())))
    head = head._replace(bias_moments=Moments(*(m.to(dtype) for m in head.bias_moments or ())))
    hidden, then = (torch.randn(n, 5, dtype=torch.float64) for n in (4, 3))
    dz, targets = torch.randn(1035, dtype=torch.float64), then @ old.weight.t() + old.bias
    kept = freeze(old.weight, old.bias, then) if is_frozen else targets
    both, alone = (head_of([t.clone() for t in tensors(head)]) for _ in range(2))
    wanted = step(both, dz, hidden, kept, coefficient=0.3)
    grad = torch.full_like(head.bias, torch.nan)
    adam = options_of()
    without = alone._replace(bias_moments=None)
    found = passes.step_rows(HeadStep(without, dz[None], hidden, kept, 0.3, adam, bias_grad=grad))
    assert all(map(torch.equal, found, wanted))
    assert torch.equal(alone.weight, both.weight)
    assert all(map(torch.equal, alone.moments, both.moments))
    assert torch.equal(alone.bias, head.bias)
    residuals = hidden[1:] @ head.weight.t() + head.bias - targets
    torch.testing.assert_close(grad, dz + 0.3 * residuals.sum(0), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("tasks", [1, 3, 12])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_frozen_head_takes_the_step_of_its_targets(
    backend: str, options: dict[str, Any], tasks: int
) -> None:
    head, old = make_head(203, 5), make_head(203, 5)
    hidden, then = (torch.randn(n, 5, dtype=torch.float64) for n in (tasks + 1, tasks))
    dz = torch.randn(203, dtype=torch.float64)
    expected = copied(head)
    targets = then @ old.weight.t() + old.bias
    wanted = torch_step(expected, dz, hidden, targets, 0.3, **options)
    frozen = freeze(old.weight, old.bias, then)
    ours = step(head, dz, hidden, frozen, coefficient=0.3, **options)
    torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(tensors(head), tensors(expected), rtol=1e-11, atol=1e-11)


@BOTH
def test_an_unchanged_head_has_no_residual_against_its_copy(
    backend: str, dtype: torch.dtype
) -> None:
    head, hidden = make_head(1003, 26, dtype), torch.randn(40, 26, dtype=dtype)
    for tensor in tensors(head)[2:]:
        tensor.zero_()
    before, frozen = copied(head), freeze(head.weight, head.bias, hidden[1:])
    dz = torch.zeros(1003, dtype=dtype)
    gradient, regularizer = step(head, dz, hidden, frozen, coefficient=1.0)
    assert regularizer.item() == 0.0
    assert not gradient.any()
    assert all(
        torch.equal(now, then) for now, then in zip(tensors(head), tensors(before), strict=True)
    )


@BOTH
@pytest.mark.parametrize("width", [3, 5, 48, 100])
def test_samples_of_a_batch_have_its_bits(backend: str, width: int, dtype: torch.dtype) -> None:
    head, batch = make_head(1003, width, dtype), torch.randn(24, width, dtype=dtype)
    targets = passes.logits(head, batch)[1:]
    for tensor in tensors(head)[2:]:
        tensor.zero_()
    for count in (1, 2, 5, 9, 16):
        rows = torch.cat((torch.zeros(1, dtype=torch.int64), torch.randperm(23)[:count] + 1))
        sampled = KeptSample(targets[rows[1:] - 1], batch, rows)
        z = passes.logits(head, batch[rows], sample=sampled)
        assert torch.equal(z[1:], sampled.logits)
        zero = torch.zeros(1003, dtype=dtype)
        gradient, regularizer = step(head, zero, batch[rows], sampled, coefficient=1.0)
        assert regularizer.item() == 0.0
        assert not gradient.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_what_is_not_finite_stays_in_its_row_and_is_seen(backend: str, bad: float) -> None:
    head, hidden = make_head(40, 5, torch.float32), torch.rand(3, 5) + 0.1
    head.weight[7, 2] = bad
    z = passes.logits(head, hidden)
    assert torch.equal(~z.isfinite().all(0), torch.arange(40) == 7)
    gradient, regularizer = step(head, torch.ones(40), hidden, torch.zeros(2, 40), coefficient=1.0)
    assert not regularizer.isfinite()
    assert not gradient[:, 2].isfinite().any()
    assert torch.equal(~head.weight.isfinite().all(1), torch.arange(40) == 7)


def test_an_infinite_gradient_reaches_its_rows_only(backend: str) -> None:
    head = make_head(40, 5, torch.float32)
    dz = torch.ones(1, 40)
    dz[0, 3] = float("inf")
    adam_rows(head, dz, torch.ones(1, 5))
    assert torch.equal(~head.weight.isfinite().all(1), torch.arange(40) == 3)


def test_small_inputs_may_be_strided(backend: str) -> None:
    head, hidden = make_head(30, 8), torch.randn(8, 6, dtype=torch.float64).t()[::2]
    dz = torch.randn(30, 3, dtype=torch.float64).t()
    z = passes.logits(head, hidden)
    assert torch.equal(z, passes.logits(head, hidden.contiguous()))
    torch.testing.assert_close(passes.hidden_grad(head.weight, dz), dz @ head.weight)
    expected = copied(head)
    torch_step(expected, dz[0], hidden, dz[1:], 0.2)
    step(head, dz[0], hidden, dz[1:].contiguous(), coefficient=0.2)


def test_autocast_changes_nothing(backend: str) -> None:
    start, hidden = make_head(50, 8, torch.float32), torch.randn(3, 8)
    dz, targets = torch.randn(50), torch.randn(2, 50)
    heads, results = (copied(start), copied(start)), []
    for head, enabled in zip(heads, (False, True), strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            z = passes.logits(head, hidden)
            results.append((z, *step(head, dz, hidden, targets, coefficient=0.1), *tensors(head)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_autograd_notices_the_update(backend: str) -> None:
    head = make_head(6, 4)
    parameter = torch.nn.Parameter(head.weight)
    loss = (torch.ones(1, 4, dtype=torch.float64, requires_grad=True) @ parameter.t()).sum()
    dz, hidden = torch.ones(1, 6, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64)
    adam_rows(head._replace(weight=parameter), dz, hidden)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
