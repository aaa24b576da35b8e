"""The recorded runs of the published HyperInterval classes, step by step, and box by box."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast.backends.choice import backend
from hypermask_fast.layers.intervals import intersection
from hypermask_fast.methods.hyperinterval.learner import HyperInterval
from hypermask_fast.native import library
from hypermask_fast.optim.factored_adam import FactoredAdam
from tests.support.hyperinterval_cases import (
    Golden,
    close,
    golden_learner,
    grads_of,
    load,
    parameters_of,
    recording,
)

# The files hold float32 numbers, half a unit in the last place off, of the largest entry.
STORED = 2e-7
# What rounding the recorded state to float32 makes of one step, and of the whole run.
ONE_STEP, WHOLE_RUN = 1e-5, 1e-4

OnePass = partial(FactoredAdam, step_in_backward=True)
ADAMS = [
    pytest.param(torch.optim.Adam, id="torch-adam"),
    pytest.param(FactoredAdam, id="factored-adam"),
    pytest.param(OnePass, id="one-pass"),
]


@pytest.fixture(params=["native", "pytorch", "reference"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pytorch":
        monkeypatch.setattr(library, "load", lambda: None)
    elif request.param == "native" and library.load() is None:
        pytest.skip(f"the native passes are not available: {library.status()}")
    return str(request.param)


def _learner(golden: Golden, kind: str, prefix: str = "init") -> HyperInterval:
    config = golden["config"]
    return golden_learner(
        golden,
        prefix,
        mode="nested" if kind == "nested" else "task",
        extent=config["E"],
        kappa=config["kappa"],
        beta=config["beta"],
    )


def _batch(golden: Golden, task: int, step: int) -> tuple[Tensor, Tensor]:
    x, y = (torch.from_numpy(golden[f"batch/{task}/{step}/{key}"]) for key in "xy")
    return x.double(), y


def _check_after(golden: Golden, learner: HyperInterval, kind: str, task: int) -> None:
    for name, parameter in parameters_of(learner).items():
        close(parameter, golden[f"after/{task}/{name}"], WHOLE_RUN, f"{name} after task {task}")
    x = torch.from_numpy(golden["probe/x"]).double()
    for j in range(task + 1):
        bounds = learner.weight_bounds(j)
        theta = torch.stack(
            [torch.cat([b[i].flatten() for b in bounds.values()]) for i in range(3)]
        )
        close(theta, golden[f"after/{task}/theta/{j}"], WHOLE_RUN, f"weights {j} after {task}")
        logits = torch.stack(learner.bounds(x, j))
        close(logits, golden[f"after/{task}/probe_logits/{j}"], WHOLE_RUN, f"logits {j}")
    if kind != "nested":
        close(learner(x, task), golden[f"after/{task}/probe_logits/{task}"][1], WHOLE_RUN, "center")
        return
    low, up = learner.universal_box()
    close((low + up) / 2, golden[f"after/{task}/universal/embedding"], WHOLE_RUN, "universal")
    if task:
        close(low, golden[f"after/{task}/universal/low"], WHOLE_RUN, "universal low")
        close(up, golden[f"after/{task}/universal/up"], WHOLE_RUN, "universal up")
    expected = golden[f"after/{task}/universal/probe_logits"][1]
    for j in range(task + 1):
        close(learner(x, j), expected, WHOLE_RUN, f"universal logits of task {j}")
    close(learner.universal_network()(x), expected, WHOLE_RUN, "exported")


@pytest.mark.parametrize("kind", ["nested", "til"])
@pytest.mark.parametrize("make_optimizer", ADAMS)
def test_the_whole_run_in_float64(
    kind: str,
    make_optimizer: Callable[..., torch.optim.Optimizer],
    passes: str,
    data_dir: Path,
) -> None:
    golden = recording(data_dir, kind)
    config, columns = golden["config"], golden["config"]["loss_columns"]
    rows = {(int(r[0]), int(r[1])): dict(zip(columns, r, strict=True)) for r in golden["losses"]}
    with backend("reference" if passes == "reference" else "auto"):
        learner = _learner(golden, kind)
        for task in range(config["tasks"]):
            learner.begin_task(task, steps=config["steps"])
            optimizer = make_optimizer(learner.parameters(), lr=config["lr"])
            for step in range(config["steps"]):
                what, row = f"task {task} step {step}", rows[task, step]
                optimizer.zero_grad()
                out = learner.losses(*_batch(golden, task, step), task, optimizer=optimizer)
                out.total.backward()
                assert learner.step_extent == pytest.approx(row["E"], rel=1e-12)
                close(out.logits, golden[f"logits/{task}/{step}"][1], WHOLE_RUN, what)
                names = {
                    "total": "total",
                    "center": "ce_mid",
                    "worst_case": "ce_worst",
                    "output_reg": "regulariser",
                }
                for name, column in names.items():
                    value = out.scalars()[name]
                    assert value.item() == pytest.approx(row[column], abs=1e-5), (what, name)
                if step == 0:
                    assert out.output_reg.item() == 0.0
                optimizer.step()
            learner.end_task()
            _check_after(golden, learner, kind, task)


@pytest.mark.parametrize("kind", ["nested", "til"])
def test_each_step_from_its_recorded_state(kind: str, passes: str, data_dir: Path) -> None:
    golden = recording(data_dir, kind)
    config = golden["config"]
    rows = {(int(r[0]), int(r[1])): r for r in golden["losses"]}
    total = config["loss_columns"].index("total")
    with backend("reference" if passes == "reference" else "auto"):
        learner = _learner(golden, kind)
        for task in range(config["tasks"]):
            if task:
                load(learner, golden, f"after/{task - 1}")
            learner.begin_task(task, steps=config["steps"])
            for step in range(config["steps"]):
                with torch.no_grad():
                    for name, parameter in parameters_of(learner).items():
                        trace = golden[f"trace/param/{name}"][task, step]
                        parameter.copy_(torch.from_numpy(trace))
                learner.zero_grad()
                out = learner.losses(*_batch(golden, task, step), task)
                out.total.backward()
                what = f"task {task} step {step}"
                assert out.total.item() == pytest.approx(rows[task, step][total], rel=ONE_STEP)
                for name, grad in grads_of(learner).items():
                    expected = golden[f"trace/grad/{name}"][task, step]
                    # A regularizer of a step's size is a difference of numbers of the weights'.
                    largest = max(float(abs(expected).max()), 1e-3)
                    torch.testing.assert_close(
                        grad,
                        torch.from_numpy(expected).double(),
                        rtol=0,
                        atol=ONE_STEP * largest,
                        msg=lambda text, what=what, name=name: f"{what} {name}: {text}",
                    )
            learner.end_task()


def _boxed(golden: Golden, index: int, arithmetic: str) -> tuple[HyperInterval, int, Any]:
    """A learner of the mode and extent of a recorded box, and the box's embedding."""
    box = golden["config"]["boxes"][index]
    learner = golden_learner(
        golden,
        "net",
        mode="task" if "softmax" in box["radius"] else "nested",
        extent=box["E"],
        arithmetic=arithmetic,
        kappa=golden["config"]["kappa"],
    )
    return learner, box["embedding"], box


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("arithmetic", ["interval", "threepass"])
def test_boxes_through_hypernetwork_and_target(
    index: int, arithmetic: str, passes: str, data_dir: Path
) -> None:
    golden = recording(data_dir, "forward")
    name = {"interval": "interval", "threepass": "three_pass"}[arithmetic]
    x, y = torch.from_numpy(golden["x"]).double(), torch.from_numpy(golden["y"])
    prefix = f"box/{index}"
    with backend("reference" if passes == "reference" else "auto"):
        learner, embedding, box = _boxed(golden, index, name)
        hypernetwork = learner.hypernetwork
        if box["center"] == "as stored":
            center = torch.from_numpy(golden[f"{prefix}/center"]).double()[None]
            radius = torch.from_numpy(golden[f"{prefix}/radius"]).double()[None]
        else:
            center, radius = hypernetwork.box(torch.tensor([embedding]))
            close(center[0], golden[f"{prefix}/center"], ONE_STEP, "center")
            close(radius[0], golden[f"{prefix}/radius"], ONE_STEP, "radius")
        emitted = hypernetwork.emitted(center, radius)[0]
        c, r = emitted.chunk(2)
        close(torch.stack((c - r, c, c + r)), golden[f"{prefix}/theta"], ONE_STEP, "weights")
        close(r, golden[f"{prefix}/theta_radius"], ONE_STEP, "radius of the weights")
        found = learner._boxes.outputs(x, emitted, [])
        close(torch.stack(found), golden[f"{prefix}/{arithmetic}/logits"], ONE_STEP, "logits")
        if box["center"] == "as stored":
            return
        learner.begin_task(embedding)
        out = learner.losses(x, y, embedding)
        out.total.backward()
        expected = golden[f"{prefix}/{arithmetic}/loss"]
        seen = torch.stack((out.total, out.center, out.worst_case))
        close(seen, expected[:3], ONE_STEP, "losses")
        for parameter, grad in grads_of(learner).items():
            key = f"{prefix}/{arithmetic}/grad/{parameter}"
            if key in golden:
                close(grad, golden[key], ONE_STEP, key)


def test_the_intersection_of_boxes(data_dir: Path) -> None:
    golden = recording(data_dir, "forward")
    for k in range(3):
        low, up = (torch.from_numpy(golden[f"intersection/{k}/{e}"]) for e in ("low", "up"))
        out = intersection(low, up)
        close(out[0], golden[f"intersection/{k}/out_low"], STORED, f"low {k}")
        close(out[1], golden[f"intersection/{k}/out_up"], STORED, f"up {k}")
