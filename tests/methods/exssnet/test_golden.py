"""The recorded runs of the published ExSSNeT code (tests/data/golden), in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hypermask_fast.methods.exssnet.learner import ExSSNeT
from tests.support.subnetwork_cases import (
    PASSES,
    Run,
    check_masks,
    check_probes,
    choose_passes,
    close,
)

RUNS = ("exclusive", "original", "conv")


def make(data_dir: Path, name: str) -> tuple[Run, ExSSNeT]:
    start = "exclusive" if name == "original" else name
    run = Run(data_dir / "golden" / "exssnet.npz", name, start)
    editable = "original" if name == "original" else "exclusive"
    options = {"density": run.config["sparsity"], "editable": editable}
    learner = ExSSNeT(run.network(), weights="as_is", **options)
    run.begin(learner)
    return run, learner


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("name", RUNS)
def test_the_whole_run_in_float64(
    name: str, passes: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_passes(passes, monkeypatch)
    run, learner = make(data_dir, name)
    config, losses = run.config, run.losses()
    first: dict[int, Tensor] = {}
    for task in range(config["tasks"]):
        learner.begin_task(task, steps=config["steps"])
        with torch.no_grad():
            learner.scores.copy_(run.flat(f"init/scores/{task}"))
        learner.train()
        step = 0
        for phase in learner.phases(task, config["steps"]):
            assert phase.steps == config["steps"] // 2
            if learner.phase != phase.name:
                learner.begin_phase(phase.name)
                close(learner.scores, run.flat(f"mask_phase/{task}/scores"), 2e-5, "scores")
                check_masks(learner, task, run, f"mask_phase/{task}/mask")
                for i, mask in enumerate(learner.editable().values()):
                    assert torch.equal(mask, run.tensor(f"editable/{task}/{i}").bool())
            optimizer = torch.optim.Adam(learner.parameters(), lr=config["lr"])
            for _ in range(phase.steps):
                what = f"task {task} step {step}"
                loss, optimizer.param_groups[0]["lr"] = losses[task, step]
                out = learner.losses(*run.batch(task, step), task)
                close(out.total, torch.tensor(loss), 1e-5, what)
                if f"logits/{task}/{step}" in run:
                    close(out.logits, run[f"logits/{task}/{step}"], 1e-5, what)
                if f"mask/{task}/{step}/0" in run:
                    check_masks(learner, task, run, f"mask/{task}/{step}")
                optimizer.zero_grad()
                out.total.backward()
                if f"grad/{task}/{step}/0" in run:
                    assert learner.scores.grad is not None
                    for i, grad in enumerate(learner._shaped(learner.scores.grad)):
                        close(grad, run[f"grad/{task}/{step}/{i}"], 2e-5, f"{what} gradient {i}")
                if f"weight_grad/{task}/{step}/0" in run:
                    assert learner.edited is not None
                    assert learner.edited.values.grad is not None
                    flat = torch.zeros_like(learner.scores)
                    flat[learner.edited.places] = learner.edited.values.grad
                    for i, grad in enumerate(learner._shaped(flat)):
                        expected = run[f"weight_grad/{task}/{step}/{i}"]
                        close(grad, expected, 2e-5, f"{what} gradient of weight {i}")
                optimizer.step()
                step += 1
        learner.end_task()
        learner.eval()
        for i, weight in enumerate(learner.net.parameters()):
            close(weight, run[f"after/{task}/weight/{i}"], 2e-5, f"weights {i} after {task}")
        check_probes(learner, run, task, first if name != "original" else None)
