"""FactoredGrad against the dense gradient it stands for."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.optim.factored_grad import FactoredGrad
from tests.support.factored_grad_cases import H, N, R, check, factors, pair, parameter


def test_stands_for_a_tensor_of_the_matrix_shape() -> None:
    grad, dense = pair()
    assert (grad.shape, grad.dtype, grad.device) == (dense.shape, dense.dtype, dense.device)
    assert not grad.requires_grad
    assert repr(grad) == "FactoredGrad(rank=3, shape=(40, 12), dtype=torch.float64)"
    check(grad, dense)
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
    assert not FactoredGrad(factors()[0], leaf * 2).hidden.requires_grad


def in_place(operation: Callable[..., None], grad: Tensor, *args: Any) -> Tensor:
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
    "foreach": lambda g: in_place(torch._foreach_mul_, g, 3.0),
    "foreach-0d": lambda g: in_place(torch._foreach_mul_, g, torch.tensor(3.0)),
    "foreach-neg": lambda g: in_place(torch._foreach_neg_, g),
}


@pytest.mark.parametrize("name", KEEPS)
def test_acts_on_the_factors(name: str) -> None:
    grad, dense = pair()
    expected = KEEPS[name](dense)
    result = KEEPS[name](grad)
    check(result, expected)
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
    "asarray": lambda g: torch.from_numpy(np.asarray(g).copy()),
    "asarray-dtype": lambda g: torch.from_numpy(np.asarray(g, dtype=np.float32).copy()),
    "dlpack": lambda g: torch.from_dlpack(g).clone(),
    "list": lambda g: torch.tensor(g.tolist(), dtype=torch.float64),
    "dense-add_": lambda g: torch.ones(N, H, dtype=torch.float64).add_(g, alpha=-2),
    "dense-copy_": lambda g: torch.empty(N, H, dtype=torch.float64).copy_(g),
    "dense-lerp_": lambda g: torch.ones(N, H, dtype=torch.float64).lerp_(g, 0.1),
    "dense-addcmul_": lambda g: torch.ones(N, H, dtype=torch.float64).addcmul_(g, g),
    "out": lambda g: torch.mul(g, 2.0, out=torch.empty(N, H, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", READS)
def test_other_reading_operations_see_the_dense_tensor(name: str) -> None:
    grad, dense = pair()
    result = READS[name](grad)
    torch.testing.assert_close(
        result.to_dense() if isinstance(result, FactoredGrad) else result, READS[name](dense)
    )
    check(grad, dense)


def masked(g: Any) -> Any:
    g[torch.arange(N) % 3 == 0] = 0
    return g


WRITES: dict[str, Callable[[Any], Any]] = {
    "clamp_": lambda g: g.clamp_(0, 1),
    "add-number": lambda g: g.add_(1.0),
    "sub-row": lambda g: g.sub_(torch.ones(H).double()),
    "mul-matrix": lambda g: g.mul_(torch.arange(N * H).reshape(N, H) % 2),
    "lerp-itself": lambda g: g.lerp_(g * 3, 0.5),
    "setitem": masked,
    "masked_fill_": lambda g: g.masked_fill_(torch.arange(H) % 2 == 0, 3.0),
    "index_fill_": lambda g: g.index_fill_(0, torch.tensor([1, 5]), 2.0),
    "copy-row": lambda g: g.copy_(torch.arange(H)),
    "foreach": lambda g: in_place(torch._foreach_clamp_min_, g, 0.0),
    "foreach-matrices": lambda g: in_place(torch._foreach_mul_, g, [torch.eye(N, H).double()]),
    "out": lambda g: torch.abs(torch.ones(N, H).double(), out=g),
    "clip_grad_value_": lambda g: (nn.utils.clip_grad_value_([parameter(g)], 0.1), g)[1],
}


@pytest.mark.parametrize("name", WRITES)
def test_other_writing_operations_write_to_a_dense_tensor_that_it_holds(name: str) -> None:
    grad, dense = pair()
    alias = grad.detach()
    result, expected = WRITES[name](grad), WRITES[name](dense)
    assert result is grad
    check(grad, expected, factored=False)
    check(alias, expected, factored=False)


@pytest.mark.parametrize(
    "change", [lambda g: g.t_(), lambda g: g.unsqueeze_(0), lambda g: g.resize_(2, 2)]
)
def test_changes_of_the_shape_in_place_raise(change: Callable[[FactoredGrad], Any]) -> None:
    grad, dense = pair()
    with pytest.raises(RuntimeError, match=r"give it grad\.to_dense\(\)"):
        change(grad)
    check(grad, dense)


@pytest.mark.parametrize("write", [lambda g: g.clamp_(), lambda g: g.mul_(torch.ones(N + 1, H))])
def test_a_write_that_fails_changes_no_value(write: Callable[[FactoredGrad], Any]) -> None:
    grad, dense = pair()
    with pytest.raises(RuntimeError):
        write(grad)
    torch.testing.assert_close(grad.to_dense(), dense)


def test_writing_to_a_view_is_not_lost() -> None:
    grad, dense = pair()
    grad[3].zero_()
    grad.view(-1)[:5] = 7
    dense[3] = 0
    dense.view(-1)[:5] = 7
    check(grad, dense, factored=False)
    with pytest.raises(RuntimeError, match="is_factored"):
        _ = grad.dz


def test_a_clone_is_independent_and_a_detached_alias_is_not() -> None:
    grad, dense = pair()
    clone, alias, copied = grad.clone(), grad.detach(), copy.deepcopy(grad)
    alias.mul_(2).add_(FactoredGrad(*factors(1, seed=2)))
    check(clone, dense)
    check(copied, dense)
    check(grad, 2 * dense + pair(1, seed=2)[1])


def test_scaling_leaves_the_given_tensors_alone() -> None:
    dz, hidden = factors()
    before = dz.clone()
    FactoredGrad(dz, hidden).mul_(5)
    assert torch.equal(dz, before)


@pytest.mark.parametrize("alpha", [1, -0.5])
def test_sums_append_factors_until_a_dense_tensor_is_smaller(alpha: float) -> None:
    # 9 (40 + 12) = 468 < 480 = 40 * 12 <= 10 * 52.
    grad, dense = pair(9 - 4, seed=1)
    four, of_four = pair(4, seed=2)
    total = torch.add(grad, four, alpha=alpha)
    check(total, dense + alpha * of_four)
    assert len(total.dz) == 9
    one, of_one = pair(1, seed=3)
    check(torch.add(total, one, alpha=alpha), dense + alpha * (of_four + of_one), factored=False)
    total.add_(one, alpha=alpha)
    check(total, dense + alpha * (of_four + of_one), factored=False)
    # From then on too, in place and not, on either side.
    check(total.add_(four), dense + alpha * (of_four + of_one) + of_four, factored=False)
    check(four + total.mul_(2), 2 * total.to_dense() / 2 + of_four, factored=False)
    check(total.zero_(), torch.zeros(N, H, dtype=torch.float64))


def test_sums_over_the_same_hidden_keep_the_rank() -> None:
    dz, hidden = factors()
    total = FactoredGrad(dz, hidden).add_(FactoredGrad(2 * dz, hidden[:]), alpha=3)
    assert len(total.dz) == R
    check(total, 7 * dz.t() @ hidden)


def test_a_dense_tensor_is_added_in_place() -> None:
    grad, dense = pair()
    other = torch.randn(N, H, dtype=torch.float64)
    grad.sub_(other, alpha=2)
    check(grad, dense - 2 * other, factored=False)
    check(copy.deepcopy(grad), dense - 2 * other, factored=False)
    check(pickle.loads(pickle.dumps(grad)), dense - 2 * other, factored=False)
    check(grad.copy_(pair(seed=5)[0]), pair(seed=5)[1])


def test_zero() -> None:
    zeros = torch.zeros(N, H, dtype=torch.float64)
    grad, dense = pair()
    check(grad.zero_(), zeros)
    assert grad.norm() == 0
    assert torch.isfinite(grad).all()
    check(grad.add_(pair()[0]), dense)
    torch._foreach_zero_([grad, torch.ones(2)])
    check(grad, zeros)


def test_the_norm_survives_float32_cancellation() -> None:
    dz, hidden = factors(dtype=torch.float32)
    exact = (dz.double().t() @ hidden.double()).norm()
    grad = FactoredGrad(torch.cat((1e4 * dz, -1e4 * dz, dz)), torch.cat((hidden, hidden, hidden)))
    # Gram sums of 1e8 times the result, rounded to 53 bits; then one rounding to float32.
    torch.testing.assert_close(grad.norm().double(), exact, rtol=1e-6, atol=0)
    opposite = FactoredGrad(torch.cat((dz, -dz)), torch.cat((hidden, hidden)))
    assert 0 <= opposite.norm() < 1e-6 * exact


@pytest.mark.parametrize("blocks", [1, 4])
def test_the_norm_is_summed_in_blocks(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypermask_fast.optim.factors._NORM_BLOCK", R * N // blocks + 1)
    grad, dense = pair()
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


def test_is_saved_and_loaded_with_weights_only() -> None:
    grad, dense = pair()
    buffer = io.BytesIO()
    torch.save({"grad": grad}, buffer)
    buffer.seek(0)
    check(torch.load(buffer, weights_only=True)["grad"], dense)


def test_follows_its_module_to_another_dtype() -> None:
    module = nn.Linear(H, N)
    module.weight.grad = FactoredGrad(*factors(dtype=torch.float32))
    module.double()
    grad = module.weight.grad
    assert grad.dtype == torch.float64
    dz, hidden = factors(dtype=torch.float32)
    check(grad, dz.double().t() @ hidden.double())
    grad.data = torch.ones(N, H, dtype=torch.float64)
    check(grad, torch.ones(N, H, dtype=torch.float64), factored=False)
    with pytest.raises(ValueError, match="assign a new gradient"):
        grad.data = torch.ones(3)


@pytest.mark.parametrize("to_array", [np.asarray, lambda grad: grad.numpy()])
def test_a_write_to_its_array_is_refused_where_it_would_be_lost(
    to_array: Callable[[FactoredGrad], Any],
) -> None:
    grad = FactoredGrad(torch.ones(1, 3), torch.ones(1, 2))
    with pytest.raises(ValueError, match="read-only"):
        to_array(grad)[0] = 0
    assert torch.equal(grad.to_dense(), torch.ones(3, 2))
