"""torch's optimizers, its scaler and its clipping on factored gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hypermask_fast.optim.factored_grad import FactoredGrad
from tests.support.factored_grad_cases import H, N, check, pair, parameter


def test_grad_scaler_unscales_factored_and_dense() -> None:
    for factor, found in ((1.0, 0.0), (float("inf"), 1.0)):
        grad, dense = pair()
        grad.mul_(factor)
        plain = torch.ones(3, dtype=torch.float64)
        found_inf = torch.zeros(1)
        torch._amp_foreach_non_finite_check_and_unscale_(
            [plain, grad], found_inf, torch.tensor(0.25)
        )
        assert found_inf == found
        assert torch.equal(plain, torch.full((3,), 0.25, dtype=torch.float64))
        if not found:
            check(grad, dense / 4)


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_by_the_norm_of_factored_and_dense(foreach: bool | None, max_norm: float) -> None:
    grad, dense = pair()
    ours = [parameter(torch.ones(3, dtype=torch.float64)), parameter(grad)]
    plain = [parameter(torch.ones(3, dtype=torch.float64)), parameter(dense)]
    torch.testing.assert_close(
        nn.utils.clip_grad_norm_(ours, max_norm, foreach=foreach),
        nn.utils.clip_grad_norm_(plain, max_norm, foreach=foreach),
    )
    assert torch.equal(ours[0].grad, plain[0].grad)
    check(ours[1].grad, plain[1].grad)


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
        ours.grad, plain.grad = pair(seed=step)
        for b, optimizer in zip(bias, optimizers, strict=True):
            b.grad = torch.full((3,), 0.5)
            optimizer.step(lambda: torch.zeros(()))
        torch.testing.assert_close(ours, plain)
        assert torch.equal(*bias)
        assert isinstance(ours.grad, FactoredGrad)


def test_a_fused_optimizer_unscales_what_it_was_given() -> None:
    grad, dense = pair()
    ours, plain = parameter(grad), parameter(dense.clone())
    for p in (ours, plain):
        optimizer = torch.optim.Adam([p], fused=True)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
        optimizer.step()
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(ours.grad.to_dense(), plain.grad)
