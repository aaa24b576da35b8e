"""The recorded runs of the published SupSup code (tests/data/golden), in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hypermask_fast.methods.supsup.learner import SupSup
from tests.support.subnetwork_cases import (
    PASSES,
    Run,
    check_masks,
    check_probes,
    choose_passes,
    close,
)

RUNS = {
    "topk": ("supsup", {"density": 0.3}),
    "threshold": ("supsup", {"rule": "threshold", "superfluous": 8}),
    "conv": ("supsup_conv", {"density_rule": "er", "er_scale": 2.0}),
}


def make(data_dir: Path, name: str) -> tuple[Run, SupSup]:
    file, options = RUNS[name]
    run = Run(data_dir / "golden" / f"{file}.npz", name)
    learner = SupSup(run.network(), weights="as_is", **options)
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
    kept = [n - d for n, d in zip(learner._sizes, learner._dropped, strict=True)]
    if config["rule"] == "topk":
        assert kept == config["kept"]
    weights = [w.clone() for w in learner.net.parameters()]
    first: dict[int, Tensor] = {}
    for task in range(config["tasks"]):
        learner.begin_task(task, steps=config["steps"])
        with torch.no_grad():
            learner.scores.copy_(run.flat(f"init/scores/{task}"))
        kind = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}[config["optimizer"]]
        optimizer = kind([learner.scores], lr=config["lr"], weight_decay=config["wd"])
        learner.train()
        for step in range(config["steps"]):
            what = f"task {task} step {step}"
            loss, lr = losses[task, step]
            optimizer.param_groups[0]["lr"] = lr
            out = learner.losses(*run.batch(task, step), task)
            close(out.total, torch.tensor(loss), 1e-5, what)
            if f"logits/{task}/{step}" in run:
                close(out.logits, run[f"logits/{task}/{step}"], 1e-5, what)
                check_masks(learner, task, run, f"mask/{task}/{step}")
            optimizer.zero_grad()
            out.total.backward()
            if f"grad/{task}/{step}/0" in run:
                assert learner.scores.grad is not None
                grads = learner._shaped(learner.scores.grad)
                for i, grad in enumerate(grads):
                    close(grad, run[f"grad/{task}/{step}/{i}"], 2e-5, f"{what} gradient {i}")
            optimizer.step()
        close(learner.scores, run.flat(f"after/{task}/scores"), 2e-5, f"scores {task}")
        learner.end_task()
        learner.eval()
        check_masks(learner, task, run, f"after/{task}/mask")
        check_probes(learner, run, task, first)
    assert all(torch.equal(a, b) for a, b in zip(weights, learner.net.parameters(), strict=True))
