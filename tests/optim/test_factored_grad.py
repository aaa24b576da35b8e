"""FactoredGrad against the dense gradient it stands for."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.optim.factored_grad import FactoredGrad

N, H, R = 40, 12, 3


def _factors(
    rank: int = R, seed: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rank, N, dtype=dtype, generator=generator),
        torch.randn(rank, H, dtype=dtype, generator=generator),
    )


def _pair(rank: int = R, seed: int = 1) -> tuple[FactoredGrad, Tensor]:
    dz, hidden = _factors(rank, seed)
    return FactoredGrad(dz, hidden), torch.einsum("rn,rh->nh", dz, hidden)


def _check(grad: Any, expected: Tensor, factored: bool = True) -> FactoredGrad:
    assert isinstance(grad, FactoredGrad)
    assert grad.is_factored is factored
    torch.testing.assert_close(grad.to_dense(), expected)
    return grad


def test_stands_for_a_tensor_of_the_matrix_shape() -> None:
    grad, dense = _pair()
    assert (grad.shape, grad.dtype, grad.device) == (dense.shape, dense.dtype, dense.device)
    assert not grad.requires_grad
    assert repr(grad) == "FactoredGrad(rank=3, shape=(40, 12), dtype=torch.float64)"
    _check(grad, dense)
    p = nn.Parameter(torch.zeros(N, H, dtype=torch.float64))
    p.grad = grad
    assert p.grad is grad


@pytest.mark.parametrize(
    ("dz", "hidden"),
    [
        pytest.param(torch.zeros(2, 5), torch.zeros(3, 4), id="ranks"),
        pytest.param(torch.zeros(5), torch.zeros(5), id="dimensions"),
        pytest.param(torch.zeros(2, 5), torch.zeros(2, 4).double(), id="dtypes"),
    ],
)
def test_factors_that_do_not_fit_are_refused(dz: Tensor, hidden: Tensor) -> None:
    with pytest.raises(ValueError, match="give"):
        FactoredGrad(dz, hidden)


def test_holds_no_autograd_graph() -> None:
    leaf = torch.ones(R, H, dtype=torch.float64, requires_grad=True)
    assert not FactoredGrad(_factors()[0], leaf * 2).hidden.requires_grad


def _in_place(operation: Callable[..., None], grad: Tensor, *args: Any) -> Tensor:
    operation([grad], *args)
    return grad


KEEPS: dict[str, Callable[[Any], Any]] = {
    "detach": lambda g: g.detach(),
    "data": lambda g: g.data,
    "clone": lambda g: g.clone(),
    "to-its-own-dtype": lambda g: g.to(torch.float64, copy=True),
    "deepcopy": lambda g: copy.deepcopy([g, g])[1],
    "pickle": lambda g: pickle.loads(pickle.dumps(g)),
    "neg": lambda g: -g,
    "mul": lambda g: g * 2.5,
    "mul-from-the-left": lambda g: 3 * g,
    "mul-0d": lambda g: torch.tensor(2.5) * g,
    "div": lambda g: g / torch.tensor(0.3, dtype=torch.float64),
    "add": lambda g: g + g,
    "sub": lambda g: torch.sub(g, g.clone() * 3, alpha=2),
    "mul_": lambda g: g.mul_(torch.tensor(0.5)),
    "div_": lambda g: g.div_(4),
    "neg_": lambda g: g.neg_(),
    "foreach": lambda g: _in_place(torch._foreach_mul_, g, 3.0),
    "foreach-0d": lambda g: _in_place(torch._foreach_mul_, g, torch.tensor(3.0)),
    "foreach-neg": lambda g: _in_place(torch._foreach_neg_, g),
}


@pytest.mark.parametrize("name", KEEPS)
def test_acts_on_the_factors(name: str) -> None:
    grad, dense = _pair()
    expected = KEEPS[name](dense)
    result = KEEPS[name](grad)
    _check(result, expected)
    assert (result is grad) == (expected is dense)


READS: dict[str, Callable[[Any], Any]] = {
    "sum": lambda g: g.sum(0),
    "abs-max": lambda g: g.abs().max(),
    "isnan": torch.isnan,
    "isfinite": torch.isfinite,
    "norm": lambda g: g.norm(),
    "norm-1": lambda g: g.norm(1),
    "norm-rows": lambda g: torch.linalg.vector_norm(g, 2, dim=1),
    "norm-inf": lambda g: torch.linalg.vector_norm(g, float("inf")),
    "norm-keepdim": lambda g: torch.linalg.vector_norm(g, keepdim=True),
    "norm-dtype": lambda g: torch.linalg.vector_norm(g.float(), dtype=torch.float64).float(),
    "foreach-norm": lambda g: torch._foreach_norm([torch.ones(2), g, torch.ones(3)])[1],
    "foreach-norm-1": lambda g: torch._foreach_norm([g], 1)[0],
    "foreach-mul": lambda g: torch._foreach_mul([g], 2.0)[0],
    "matmul": lambda g: g @ torch.ones(H, dtype=torch.float64),
    "add-dense": lambda g: g + torch.ones(N, H, dtype=torch.float64),
    "dense-add": lambda g: torch.ones(N, H, dtype=torch.float64) + g,
    "mul-dense": lambda g: g * torch.arange(H),
    "mul-itself": lambda g: g * g,
    "add-number": lambda g: g + 1,
    "zeros-like": torch.zeros_like,
    "numpy": lambda g: torch.from_numpy(g.numpy().copy()),
    "list": lambda g: torch.tensor(g.tolist(), dtype=torch.float64),
    "dense-add_": lambda g: torch.ones(N, H, dtype=torch.float64).add_(g, alpha=-2),
    "dense-copy_": lambda g: torch.empty(N, H, dtype=torch.float64).copy_(g),
    "dense-lerp_": lambda g: torch.ones(N, H, dtype=torch.float64).lerp_(g, 0.1),
    "dense-addcmul_": lambda g: torch.ones(N, H, dtype=torch.float64).addcmul_(g, g),
    "out": lambda g: torch.mul(g, 2.0, out=torch.empty(N, H, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", READS)
def test_other_reading_operations_see_the_dense_tensor(name: str) -> None:
    grad, dense = _pair()
    result = READS[name](grad)
    torch.testing.assert_close(
        result.to_dense() if isinstance(result, FactoredGrad) else result, READS[name](dense)
    )
    _check(grad, dense)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda g: g.clamp_(0, 1), id="clamp_"),
        pytest.param(lambda g: g.add_(1.0), id="add-number"),
        pytest.param(lambda g: g.mul_(torch.ones(N, H)), id="mul-matrix"),
        pytest.param(lambda g: g.lerp_(g, 0.5), id="lerp_"),
        pytest.param(lambda g: torch._foreach_clamp_min_([torch.ones(2), g], 0.0), id="foreach"),
        pytest.param(lambda g: torch.abs(torch.ones(N, H).double(), out=g), id="out"),
        pytest.param(
            lambda g: nn.utils.clip_grad_value_([_parameter(g)], 0.1), id="clip_grad_value_"
        ),
    ],
)
def test_other_writing_operations_raise(write: Callable[[FactoredGrad], Any]) -> None:
    grad, dense = _pair()
    with pytest.raises(RuntimeError, match=r"p\.grad = p\.grad\.to_dense\(\)"):
        write(grad)
    _check(grad, dense)


def _parameter(grad: Tensor) -> nn.Parameter:
    p = nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype))
    p.grad = grad
    return p


def test_writing_to_a_view_is_not_lost() -> None:
    grad, dense = _pair()
    grad[3].zero_()
    grad.view(-1)[:5] = 7
    dense[3] = 0
    dense.view(-1)[:5] = 7
    _check(grad, dense, factored=False)
    with pytest.raises(RuntimeError, match="is_factored"):
        _ = grad.dz


def test_a_clone_is_independent_and_a_detached_alias_is_not() -> None:
    grad, dense = _pair()
    clone, alias, copied = grad.clone(), grad.detach(), copy.deepcopy(grad)
    alias.mul_(2).add_(FactoredGrad(*_factors(1, seed=2)))
    _check(clone, dense)
    _check(copied, dense)
    _check(grad, 2 * dense + _pair(1, seed=2)[1])


def test_scaling_leaves_the_given_tensors_alone() -> None:
    dz, hidden = _factors()
    before = dz.clone()
    FactoredGrad(dz, hidden).mul_(5)
    assert torch.equal(dz, before)


@pytest.mark.parametrize("alpha", [1, -0.5])
def test_sums_append_factors_until_a_dense_tensor_is_smaller(alpha: float) -> None:
    # 9 (40 + 12) = 468 < 480 = 40 * 12 <= 10 * 52.
    grad, dense = _pair(9 - 4, seed=1)
    four, of_four = _pair(4, seed=2)
    total = torch.add(grad, four, alpha=alpha)
    _check(total, dense + alpha * of_four)
    assert len(total.dz) == 9
    one, of_one = _pair(1, seed=3)
    _check(torch.add(total, one, alpha=alpha), dense + alpha * (of_four + of_one), factored=False)
    total.add_(one, alpha=alpha)
    _check(total, dense + alpha * (of_four + of_one), factored=False)
    # From then on too, in place and not, on either side.
    _check(total.add_(four), dense + alpha * (of_four + of_one) + of_four, factored=False)
    _check(four + total.mul_(2), 2 * total.to_dense() / 2 + of_four, factored=False)
    _check(total.zero_(), torch.zeros(N, H, dtype=torch.float64))


def test_sums_over_the_same_hidden_keep_the_rank() -> None:
    dz, hidden = _factors()
    total = FactoredGrad(dz, hidden).add_(FactoredGrad(2 * dz, hidden[:]), alpha=3)
    assert len(total.dz) == R
    _check(total, 7 * dz.t() @ hidden)


def test_a_dense_tensor_is_added_in_place() -> None:
    grad, dense = _pair()
    other = torch.randn(N, H, dtype=torch.float64)
    grad.sub_(other, alpha=2)
    _check(grad, dense - 2 * other, factored=False)
    _check(copy.deepcopy(grad), dense - 2 * other, factored=False)
    _check(pickle.loads(pickle.dumps(grad)), dense - 2 * other, factored=False)
    _check(grad.copy_(_pair(seed=5)[0]), _pair(seed=5)[1])


def test_zero() -> None:
    zeros = torch.zeros(N, H, dtype=torch.float64)
    grad, dense = _pair()
    _check(grad.zero_(), zeros)
    assert grad.norm() == 0
    assert torch.isfinite(grad).all()
    _check(grad.add_(_pair()[0]), dense)
    torch._foreach_zero_([grad, torch.ones(2)])
    _check(grad, zeros)


def test_the_norm_survives_float32_cancellation() -> None:
    dz, hidden = _factors(dtype=torch.float32)
    exact = (dz.double().t() @ hidden.double()).norm()
    grad = FactoredGrad(torch.cat((1e4 * dz, -1e4 * dz, dz)), torch.cat((hidden, hidden, hidden)))
    # Gram sums of 1e8 times the result, rounded to 53 bits; then one rounding to float32.
    torch.testing.assert_close(grad.norm().double(), exact, rtol=1e-6, atol=0)
    opposite = FactoredGrad(torch.cat((dz, -dz)), torch.cat((hidden, hidden)))
    assert 0 <= opposite.norm() < 1e-6 * exact


@pytest.mark.parametrize("blocks", [1, 4])
def test_the_norm_is_summed_in_blocks(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypermask_fast.optim.factors._NORM_BLOCK", R * N // blocks + 1)
    grad, dense = _pair()
    torch.testing.assert_close(grad.norm(), dense.norm())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("factor", ["dz", "hidden"])
def test_finds_what_is_not_finite(factor: str, value: float) -> None:
    dz, hidden = torch.full((2, 5), 3.0), torch.full((2, 4), 2.0)
    {"dz": dz, "hidden": hidden}[factor][1, 2] = value
    grad = FactoredGrad(dz, hidden)
    expected = grad.to_dense().isfinite()
    assert not expected.all()
    if value == 3e38 and factor == "hidden":
        # The bound on a row does not tell which column overflows.
        expected[:] = False
    assert torch.equal(torch.isfinite(grad), expected)
    assert torch.equal(grad.isfinite(), expected)
    assert not grad.all_finite()


def test_grad_scaler_unscales_factored_and_dense() -> None:
    for factor, found in ((1.0, 0.0), (float("inf"), 1.0)):
        grad, dense = _pair()
        grad.mul_(factor)
        plain = torch.ones(3, dtype=torch.float64)
        found_inf = torch.zeros(1)
        torch._amp_foreach_non_finite_check_and_unscale_(
            [plain, grad], found_inf, torch.tensor(0.25)
        )
        assert found_inf == found
        assert torch.equal(plain, torch.full((3,), 0.25, dtype=torch.float64))
        if not found:
            _check(grad, dense / 4)


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_by_the_norm_of_factored_and_dense(foreach: bool | None, max_norm: float) -> None:
    grad, dense = _pair()
    ours = [_parameter(torch.ones(3, dtype=torch.float64)), _parameter(grad)]
    plain = [_parameter(torch.ones(3, dtype=torch.float64)), _parameter(dense)]
    torch.testing.assert_close(
        nn.utils.clip_grad_norm_(ours, max_norm, foreach=foreach),
        nn.utils.clip_grad_norm_(plain, max_norm, foreach=foreach),
    )
    assert torch.equal(ours[0].grad, plain[0].grad)
    _check(ours[1].grad, plain[1].grad)


def test_is_saved_and_loaded_with_weights_only() -> None:
    grad, dense = _pair()
    buffer = io.BytesIO()
    torch.save({"grad": grad}, buffer)
    buffer.seek(0)
    _check(torch.load(buffer, weights_only=True)["grad"], dense)


def test_follows_its_module_to_another_dtype() -> None:
    module = nn.Linear(H, N)
    module.weight.grad = FactoredGrad(*_factors(dtype=torch.float32))
    module.double()
    grad = module.weight.grad
    assert grad.dtype == torch.float64
    dz, hidden = _factors(dtype=torch.float32)
    _check(grad, dz.double().t() @ hidden.double())
    grad.data = torch.ones(N, H, dtype=torch.float64)
    _check(grad, torch.ones(N, H, dtype=torch.float64), factored=False)
    with pytest.raises(ValueError, match="assign a new gradient"):
        grad.data = torch.ones(3)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda ps, **kw: torch.optim.SGD(ps, 0.1, **kw),
    "sgd-momentum": lambda ps, **kw: torch.optim.SGD(ps, 0.1, momentum=0.9, **kw),
    "sgd-nesterov": lambda ps, **kw: torch.optim.SGD(
        ps, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1, maximize=True, **kw
    ),
    "adam": lambda ps, **kw: torch.optim.Adam(ps, 0.1, weight_decay=0.1, maximize=True, **kw),
    "adamw": lambda ps, **kw: torch.optim.AdamW(ps, 0.1, amsgrad=True, **kw),
    "adagrad": lambda ps, **kw: torch.optim.Adagrad(ps, 0.1, **kw),
    "rmsprop": lambda ps, **kw: torch.optim.RMSprop(ps, 0.1, momentum=0.5, centered=True, **kw),
    "rprop": lambda ps, **kw: torch.optim.Rprop(ps, 0.1, **kw),
    "adadelta": lambda ps, **kw: torch.optim.Adadelta(ps, 0.1, **kw),
    "nadam": lambda ps, **kw: torch.optim.NAdam(ps, 0.1, **kw),
    "lbfgs": lambda ps, **kw: torch.optim.LBFGS(ps, 0.1, **kw),
}
FORMS: dict[str, dict[str, bool]] = {
    "default": {},
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(name, form, id=f"{name}-{form}")
        for name in OPTIMIZERS
        for form in FORMS
        if not (form == "fused" and name in ("rmsprop", "rprop", "adadelta", "nadam"))
        and not (form != "default" and name == "lbfgs")
    ],
)
def test_every_torch_optimizer_is_right(name: str, form: str) -> None:
    start = torch.randn(N, H, dtype=torch.float64)
    ours, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    bias = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [OPTIMIZERS[name](ps, **FORMS[form]) for ps in ([ours, bias[0]], [plain, bias[1]])]
    # Four gradients of momentum take more memory than a dense tensor.
    for step in range(5):
        ours.grad, plain.grad = _pair(seed=step)
        for b, optimizer in zip(bias, optimizers, strict=True):
            b.grad = torch.full((3,), 0.5)
            optimizer.step(lambda: torch.zeros(()))
        torch.testing.assert_close(ours, plain)
        assert torch.equal(*bias)
        assert isinstance(ours.grad, FactoredGrad)


def test_a_fused_optimizer_unscales_what_it_was_given() -> None:
    grad, dense = _pair()
    ours, plain = _parameter(grad), _parameter(dense.clone())
    for p in (ours, plain):
        optimizer = torch.optim.Adam([p], fused=True)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
        optimizer.step()
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(ours.grad.to_dense(), plain.grad)
