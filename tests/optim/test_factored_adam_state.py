"""State of FactoredAdam: that of torch, through files, and what is refused."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hypermask_fast.errors import CheckpointError
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.tables import add_rows
from tests.support.factored_adam_cases import TORCH, Model, check, take_steps


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("decoupled", [False, True], ids=["adam", "adamw"])
@pytest.mark.parametrize("direction", ["to-torch", "from-torch"])
def test_state_is_that_of_torch(decoupled: bool, direction: str) -> None:
    options = {"lr": 0.02, "weight_decay": 0.05}
    ours, plain, both = Model(True), Model(False), Model(direction == "to-torch")
    make_ours = lambda m, **kw: FactoredAdam(m.parameters, **kw)  # noqa: E731
    make_torch = lambda m, **kw: TORCH[decoupled](m.parameters, **kw)  # noqa: E731
    first, second = (make_ours, make_torch) if direction == "to-torch" else (make_torch, make_ours)
    if first is make_ours:
        optimizer = first(both, decoupled_weight_decay=decoupled, **options)
    else:
        optimizer = first(both, **options)
    take_steps(both, optimizer, range(3))
    after = second(both)
    after.load_state_dict(_through_a_file(optimizer.state_dict()))
    both.factored = not both.factored
    take_steps(both, after, range(3, 6))
    take_steps(plain, make_torch(plain, **options))
    check(both, plain)
    take_steps(ours, make_ours(ours, decoupled_weight_decay=decoupled, **options))
    check(ours, both)


def test_a_step_count_in_float64_is_loaded() -> None:
    ours, plain = Model(True), Model(False)
    optimizer = torch.optim.Adam(ours.parameters)
    take_steps(ours, optimizer, range(3))
    state = optimizer.state_dict()
    for entry in state["state"].values():
        entry["step"] = entry["step"].double()
    again = FactoredAdam(ours.parameters)
    again.load_state_dict(state)
    take_steps(ours, again, range(3, 6))
    take_steps(plain, torch.optim.Adam(plain.parameters))
    check(ours, plain)


def test_a_loaded_rate_goes_into_the_tensor_that_is_there() -> None:
    model = Model(True)
    lr = torch.tensor(0.5)
    optimizer = FactoredAdam(model.parameters, lr=lr, capturable=True)
    optimizer.load_state_dict(torch.optim.Adam(Model(False).parameters, lr=0.25).state_dict())
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr == 0.25
    assert optimizer.param_groups[0]["capturable"]


def test_loading_keeps_options_that_torch_does_not_have() -> None:
    model = Model(True)
    groups = [{"params": [p], "row_sparse": p.dim() == 2} for p in model.parameters]
    optimizer = FactoredAdam(groups, moments_dtype=torch.bfloat16)
    plain = [{"params": [p], "lr": 0.5} for p in model.parameters]
    optimizer.load_state_dict(torch.optim.Adam(plain).state_dict())
    assert [g["row_sparse"] for g in optimizer.param_groups] == [True, False]
    assert [g["moments_dtype"] for g in optimizer.param_groups] == ["bfloat16"] * 2
    assert [g["lr"] for g in optimizer.param_groups] == [0.5] * 2


def test_groups_are_json() -> None:
    groups = FactoredAdam(Model(True).parameters, moments_dtype=torch.bfloat16).state_dict()[
        "param_groups"
    ]
    again = [{**g, "betas": tuple(g["betas"])} for g in json.loads(json.dumps(groups))]
    assert again == groups


@pytest.mark.parametrize(
    ("foreign", "match"),
    [
        pytest.param(lambda ps: torch.optim.Adam(ps, amsgrad=True), "amsgrad=True", id="amsgrad"),
        pytest.param(lambda ps: torch.optim.SGD(ps), "without betas, eps", id="sgd"),
    ],
)
def test_state_of_another_optimizer_is_refused(foreign: Any, match: str) -> None:
    model = Model(True)
    with pytest.raises(CheckpointError, match=match):
        FactoredAdam(model.parameters).load_state_dict(foreign(model.parameters).state_dict())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s["state"][0].update(exp_avg=s["state"][0]["exp_avg"][:-1]), "of parameter 0"),
        (lambda s: s["state"][1].update(exp_avg_sq=torch.zeros(1000)), "of parameter 1"),
        (lambda s: s["state"][1].pop("exp_avg"), "of parameter 1"),
        (lambda s: s["param_groups"][0]["params"].pop(), "over the same parameters"),
        (lambda s: s["param_groups"].append(dict(s["param_groups"][0])), "over the same"),
        (lambda s: s.pop("state"), "give what state_dict"),
    ],
    ids=["fewer-rows", "larger", "half", "parameters", "groups", "no-state"],
)
def test_state_that_does_not_fit_is_refused_and_changes_nothing(
    change: Callable[[dict[str, Any]], Any], match: str
) -> None:
    saved_of, own = Model(True), Model(True)
    optimizers = [FactoredAdam(model.parameters, lr=0.1) for model in (saved_of, own)]
    take_steps(saved_of, optimizers[0])
    state = copy.deepcopy(optimizers[0].state_dict())
    change(state)
    with pytest.raises(CheckpointError, match=match):
        optimizers[1].load_state_dict(state)
    assert not optimizers[1].state
    assert optimizers[1].param_groups[0]["params"] == own.parameters


def test_state_of_a_table_that_grew_has_its_rows() -> None:
    table = nn.Parameter(torch.zeros(2, 3))
    optimizer = FactoredAdam([table])
    table.grad = torch.ones(2, 3)
    optimizer.step()
    add_rows(table, torch.zeros(2, 3))
    state = copy.deepcopy(optimizer.state_dict())
    assert state["state"][0]["exp_avg"].shape == (4, 3)
    assert not state["state"][0]["exp_avg"][2:].any()
    FactoredAdam([nn.Parameter(torch.zeros(4, 3))]).load_state_dict(state)


def test_reset_starts_again_in_the_same_memory() -> None:
    ours, fresh = Model(True), Model(True)
    optimizer = FactoredAdam(ours.parameters, lr=0.1)
    take_steps(ours, optimizer)
    places = [v.data_ptr() for s in optimizer.state.values() for v in s.values()]
    optimizer.reset()
    assert places == [v.data_ptr() for s in optimizer.state.values() for v in s.values()]
    for p, q in zip(ours.parameters, fresh.parameters, strict=True):
        q.data.copy_(p.data)
    take_steps(ours, optimizer)
    take_steps(fresh, FactoredAdam(fresh.parameters, lr=0.1))
    for p, q in zip(ours.parameters, fresh.parameters, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("fused", [None, True, False])
def test_moments_that_were_saved_contiguous_belong_to_the_same_weights(fused: bool | None) -> None:
    """As those of safetensors are, whatever the strides of the parameter."""

    def made() -> tuple[nn.Parameter, FactoredAdam]:
        torch.manual_seed(0)
        weight = torch.randn(4, 3, 2, 5).to(memory_format=torch.channels_last)
        p = nn.Parameter(weight)
        return p, FactoredAdam([p], lr=0.1, fused=fused)

    (p, optimizer), (again, loaded) = made(), made()
    gradients = [torch.randn(4, 3, 2, 5) for _ in range(3)]
    for step, grad in enumerate(gradients):
        p.grad = grad.to(memory_format=torch.channels_last)
        optimizer.step()
        if step == 1:
            state = optimizer.state_dict()
            moments = state["state"][0]
            state["state"][0] = {key: value.clone().contiguous() for key, value in moments.items()}
            again.data.copy_(p.data)
            loaded.load_state_dict(state)
    again.grad = gradients[-1].to(memory_format=torch.channels_last)
    loaded.step()
    assert torch.equal(again, p)
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(loaded.state[again][name], optimizer.state[p][name])
