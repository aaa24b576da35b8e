"""FactoredAdam against torch.optim.Adam and AdamW on the dense gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.errors import ConfigError
from hypermask_fast.native import library
from hypermask_fast.optim.dense import step_dense
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.optim.factored_grad import FactoredGrad
from hypermask_fast.optim.factors import Factors
from hypermask_fast.optim.in_backward import Verdict
from tests.support.factored_adam_cases import TORCH, H, Model, N, R, check, pair, take_steps


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}, id="hyperparameters"),
        pytest.param({"weight_decay": 0.1}, id="l2"),
        pytest.param({"weight_decay": 0.1, "decoupled_weight_decay": True}, id="adamw"),
        pytest.param({"weight_decay": 0.1, "maximize": True}, id="maximize"),
        pytest.param({"lr": torch.tensor(0.01, dtype=torch.float64)}, id="lr-tensor"),
        pytest.param({"fused": True}, id="fused"),
        pytest.param({"fused": True, "capturable": True}, id="capturable"),
        pytest.param({"foreach": True}, id="foreach"),
        pytest.param({"foreach": False}, id="single"),
    ],
)
def test_equals_adam(options: dict[str, Any]) -> None:
    ours, optimizer, plain, reference = pair(**options)
    take_steps(ours, optimizer)
    take_steps(plain, reference)
    check(ours, plain)
    for a, b in zip(ours.parameters, plain.parameters, strict=True):
        assert optimizer.state[a].keys() == reference.state[b].keys()
        for name, value in reference.state[b].items():
            torch.testing.assert_close(optimizer.state[a][name], value, rtol=1e-12, atol=1e-12)


def test_the_gradient_never_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Factors) -> Tensor:
        raise AssertionError("a gradient was materialised")

    monkeypatch.setattr(Factors, "materialized", refuse)
    model = Model(True)
    optimizer = FactoredAdam(model.parameters)
    model.backward(0)
    nn.utils.clip_grad_norm_(model.parameters, 0.1)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()


@pytest.mark.parametrize("decoupled", [False, True], ids=["adam", "adamw"])
@pytest.mark.parametrize("scalars", ["numbers", "tensors"])
@pytest.mark.parametrize("passes", ["native", "pytorch"])
def test_open_loop_error_is_at_most_twice_that_of_torch(
    decoupled: bool, scalars: str, passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if passes == "pytorch":
        monkeypatch.setattr(library, "load", lambda: None)
    rows, width, options = 3000, 20, {"lr": 1e-3, "weight_decay": 0.01}
    start = torch.randn(rows, width)
    exact = nn.Parameter(start.double())
    plain, ours = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        TORCH[decoupled]([exact], **options),
        TORCH[decoupled]([plain], **options),
        FactoredAdam(
            [ours],
            decoupled_weight_decay=decoupled,
            capturable=scalars == "tensors",
            **{**options, "lr": torch.tensor(1e-3) if scalars == "tensors" else 1e-3},
        ),
    ]
    for _ in range(50):
        dz, hidden = torch.randn(4, rows), torch.randn(4, width)
        exact.grad = dz.double().t() @ hidden.double()
        plain.grad = dz.t() @ hidden
        ours.grad = FactoredGrad(dz, hidden)
        for optimizer in optimizers:
            optimizer.step()
    errors = [(p.detach().double() - exact.detach()).norm() for p in (plain, ours)]
    assert 0 < errors[1] <= 2 * errors[0]


def test_bfloat16_moments() -> None:
    ours, exact = Model(True, torch.float32), Model(False)
    optimizer = FactoredAdam(ours.parameters, lr=1e-2, moments_dtype=torch.bfloat16)
    reference = torch.optim.Adam(exact.parameters, lr=1e-2)
    head, other = ours.parameters
    for step in range(5):
        # A dense gradient now and then updates the same moments.
        ours.factored = step != 2
        take_steps(ours, optimizer, range(step, step + 1))
        take_steps(exact, reference, range(step, step + 1))
        for name in ("exp_avg", "exp_avg_sq"):
            assert optimizer.state[head][name].dtype == torch.bfloat16
            assert optimizer.state[other][name].dtype == torch.float32
        # The first update comes before any rounding. Later each moment has one of 2^-9 a step, and
        # Adam's updates are at most (1 - beta1) / sqrt(1 - beta2) = 3.2 learning rates.
        roundings = 1.5 * 2**-9 * step * (step + 1) / 2
        tolerance = 1e-6 + 1e-2 * 3.2 * roundings
        torch.testing.assert_close(head.double(), exact.parameters[0], rtol=0, atol=tolerance)
    other_error = (other.double() - exact.parameters[1]).abs().max()
    assert other_error < 1e-5
    # Loaded as the parameter's dtype, and rounded back to what they were.
    saved = copy.deepcopy(optimizer.state_dict())
    again = FactoredAdam(ours.parameters, moments_dtype=torch.bfloat16)
    again.load_state_dict(saved)
    copies = [p.detach().clone() for p in ours.parameters]
    take_steps(ours, optimizer, range(5, 8))
    expected = head.detach().clone()
    for p, value in zip(ours.parameters, copies, strict=True):
        p.data.copy_(value)
    take_steps(ours, again, range(5, 8))
    assert torch.equal(head, expected)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"fused": True}, id="fused"),
        pytest.param({"foreach": True}, id="foreach"),
        pytest.param({"foreach": False}, id="single"),
    ],
)
def test_a_step_that_is_not_to_be_taken_changes_nothing(options: dict[str, Any]) -> None:
    start = torch.randn(4, 3)
    results = []
    for flags in ((True, False, True), (True, True)):
        p = nn.Parameter(start.clone())
        optimizer = FactoredAdam([p], lr=0.1, weight_decay=0.1, **options)
        for finite in flags:
            p.grad = torch.ones(4, 3) if finite else torch.full((4, 3), torch.nan)
            states = [optimizer._state_of(p)]
            with torch.no_grad():
                verdict = Verdict.of(torch.tensor(finite))
                step_dense([p], states, optimizer.param_groups[0], verdict)
        results.append({"p": p.detach(), **optimizer.state[p]})
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name
    assert results[0]["step"] == 2


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.1), id="step"),
        pytest.param(
            lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=6), id="one-cycle"
        ),
        pytest.param(
            lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0), id="plateau"
        ),
    ],
)
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64)], ids=["float", "0d"])
def test_schedulers(schedule: Any, lr: float | Tensor) -> None:
    ours, optimizer, plain, reference = pair(lr=copy.copy(lr))
    for group in reference.param_groups:
        group["lr"] = copy.deepcopy(lr)
    schedulers = [schedule(optimizer), schedule(reference)]
    for step in range(5):
        take_steps(ours, optimizer, range(step, step + 1))
        take_steps(plain, reference, range(step, step + 1))
        for scheduler in schedulers:
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([1.0] if plateau else []))
    assert float(optimizer.param_groups[0]["lr"]) != 0.1
    check(ours, plain)


def test_groups_have_options_of_their_own() -> None:
    ours, plain = Model(True), Model(False)
    groups = [{"lr": 0.1, "weight_decay": 0.5}, {"lr": 0.01, "betas": (0.5, 0.5)}]
    optimizers = []
    for model, kind in ((ours, FactoredAdam), (plain, torch.optim.Adam)):
        optimizer = kind([{"params": [model.parameters[0]], **groups[0]}])
        optimizer.add_param_group({"params": [model.parameters[1]], **groups[1]})
        optimizers.append(optimizer)
    take_steps(ours, optimizers[0])
    take_steps(plain, optimizers[1])
    check(ours, plain)


def test_grad_scaler_skips_a_step_with_an_infinite_gradient() -> None:
    ours, optimizer, plain, reference = pair()
    scalers = [torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100) for _ in range(2)]
    for step, scale in enumerate((1.0, float("inf"), 1.0, 1.0)):
        pairs = zip(scalers, (ours, plain), (optimizer, reference), strict=True)
        for scaler, model, o in pairs:
            factor = scaler.scale(torch.tensor(scale))
            model.backward(step, scale=float(factor))
            scaler.unscale_(o)
            nn.utils.clip_grad_norm_(model.parameters, 2.0)
            scaler.step(o)
            scaler.update()
    assert scalers[0].get_scale() == scalers[1].get_scale() == 2.0
    assert optimizer.state[ours.parameters[0]]["step"] == 3
    check(ours, plain)


def test_closure_and_parameters_without_gradient() -> None:
    ours, optimizer, plain, reference = pair()

    def closure() -> float:
        assert torch.is_grad_enabled()
        ours.backward(0)
        ours.parameters[1].grad = None
        return 3.5

    assert optimizer.step(closure) == 3.5
    assert ours.parameters[1] not in optimizer.state
    plain.backward(0)
    plain.parameters[1].grad = None
    reference.step()
    check(ours, plain)


@pytest.mark.parametrize("rank", [0, 1, 8, 20])
def test_any_rank_and_a_gradient_that_became_dense(rank: int) -> None:
    ours, optimizer, plain, reference = pair(weight_decay=0.1)
    for model, o in ((ours, optimizer), (plain, reference)):
        take_steps(model, o, range(2), rank=rank)
        model.backward(2)
        # Accumulation makes it dense, by memory or by a dense summand.
        grad = model.parameters[0].grad
        assert grad is not None
        grad.add_(torch.ones(N, H, dtype=torch.float64))
        o.step()
        take_steps(model, o, range(3, 5), rank=rank)
    check(ours, plain)


def test_other_layouts_and_dtypes_go_through_the_dense_update() -> None:
    for dtype, layout in ((torch.bfloat16, False), (torch.float64, True)):
        start = torch.randn(N, H).to(dtype)
        dz, hidden = torch.randn(R, N).to(dtype), torch.randn(R, H).to(dtype)
        ours, plain = (
            nn.Parameter(start.t().contiguous().t() if layout else start.clone()) for _ in range(2)
        )
        ours.grad, plain.grad = FactoredGrad(dz, hidden), dz.t() @ hidden
        FactoredAdam([ours]).step()
        torch.optim.Adam([plain], fused=True).step()
        assert torch.equal(ours, plain)


def test_row_sparse_moves_only_rows_with_a_gradient() -> None:
    table, alone = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.zeros(2, 4))
    start = table.detach().clone()
    alone.data.copy_(table[:2])
    options = {"lr": 0.1, "weight_decay": 0.1}
    optimizer = FactoredAdam([{"params": [table], "row_sparse": True}], **options)
    reference = torch.optim.Adam([alone], fused=True, **options)
    for step in range(4):
        grad = torch.zeros(6, 4)
        grad[:2] = torch.randn(2, 4)
        # A single entry is a gradient; row 5 has one only in the first step.
        grad[0, 1:] = 0
        if step == 0:
            grad[5] = 1
        table.grad, alone.grad = grad, grad[:2].clone()
        optimizer.step()
        reference.step()
        if step == 0:
            first = table.detach().clone()
            moments = {k: v.clone() for k, v in optimizer.state[table].items()}
    assert torch.equal(table[:2], alone)
    assert torch.equal(table[2:5], start[2:5])
    assert torch.equal(table[5], first[5])
    assert not torch.equal(first[5], start[5])
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[table][name][2:], moments[name][2:])
    assert optimizer.state[table]["step"] == 4
    # Factors take part in it as the tensor they stand for.
    before = table.detach().clone()
    table.grad = FactoredGrad(torch.eye(1, 6), torch.ones(1, 4))
    optimizer.step()
    assert torch.equal((table != before).any(1).nonzero(), torch.tensor([[0]]))
    table.grad = torch.zeros(6, 4)
    table.grad[3, 0] = float("nan")
    optimizer.step()
    assert table[3, 0].isnan()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({"lr": -1.0}, "lr is -1.0", id="lr"),
        pytest.param({"lr": float("nan")}, "lr is nan", id="lr-nan"),
        pytest.param({"lr": torch.ones(2)}, r"lr has shape \(2,\)", id="lr-shape"),
        pytest.param({"eps": -1e-8}, "eps is -1e-08", id="eps"),
        pytest.param({"weight_decay": -0.1}, "weight_decay is -0.1", id="weight-decay"),
        pytest.param({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\)", id="betas"),
        pytest.param({"foreach": True, "fused": True}, "both True", id="fused-and-foreach"),
        pytest.param({"moments_dtype": torch.float16}, "torch.float16", id="moments"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], match: str) -> None:
    model = Model(True)
    with pytest.raises(ConfigError, match=match):
        FactoredAdam(model.parameters, **options)
    optimizer = FactoredAdam(model.parameters[:1])
    with pytest.raises(ConfigError, match=match):
        optimizer.add_param_group({"params": model.parameters[1:], **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", ["amsgrad", "differentiable"])
def test_options_of_torch_that_it_lacks_are_refused_by_name(name: str) -> None:
    model = Model(True)
    with pytest.raises(ConfigError, match=f"{name} is True, which FactoredAdam does not have"):
        FactoredAdam([{"params": model.parameters, name: True}])


def test_what_it_cannot_do_is_refused() -> None:
    model = Model(True)
    model.backward(0)
    elsewhere = FactoredAdam(model.parameters, capturable=True)
    elsewhere.param_groups[0]["lr"] = torch.zeros((), device="meta")
    with pytest.raises(ConfigError, match=r"lr is a tensor on meta .* make it there"):
        elsewhere.step()
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="row_sparse=True"):
        FactoredAdam(embedding.parameters()).step()
