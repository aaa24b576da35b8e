"""What is kept of earlier tasks, saved and restored."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast.errors import CheckpointError
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from hypermask_fast.runs import run
from hypermask_fast.settings.config import RunConfig
from tests.support.kept_cases import FORMS, gradients, learner_in, moved


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["state", "copy"])
def test_a_restored_learner_continues_bit_identically(passes: str, form: str, how: str) -> None:
    learner = moved(learner_in(6, targets=form, regularized_tasks=2))
    gradients(learner, 6)
    if how == "copy":
        twin = copy.deepcopy(learner)
    else:
        torch.manual_seed(77)
        settings = {"embedding_dim": 3, "hidden": (7, 4), "beta": 0.5, "capacity": 40}
        net = MLP(9, (11,), 3).double()
        twin = HyperMask(net, targets=form, regularized_tasks=2, **settings)  # type: ignore[arg-type]
        tensors, state = learner.task_state()
        tensors = {name: value.clone() for name, value in tensors.items()}
        twin.load_task_state(tensors, json.loads(json.dumps(state)))
        twin.load_state_dict(learner.state_dict())
    for _ in range(3):
        pairs = zip(gradients(learner, 6), gradients(twin, 6), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    twin.end_task()
    assert twin.task_state()[0] == {}
    assert learner.task_state()[0]


@pytest.mark.parametrize("form", FORMS)
def test_a_run_resumes_bit_identically(form: str, tmp_path: Path) -> None:
    config = RunConfig.from_preset(
        "split-digits",
        steps=12,
        mlp_hidden=(10,),
        embedding_dim=4,
        hidden=(6,),
        device="cpu",
        targets=form,
        regularized_tasks=2,
    )
    tensors: list[dict[str, Tensor]] = []
    for interrupted in (False, True):
        scenario, trainer = run.build(config)
        for index, task in enumerate(scenario):
            if interrupted and index == 4:
                trainer.hooks.append(_stop_at_five)
                with pytest.raises(KeyboardInterrupt):
                    trainer.fit(task)
                saved, state = trainer.state()
                saved = {name: value.clone() for name, value in saved.items()}
                torch.manual_seed(99)
                _, trainer = run.build(config)
                trainer.load_state(saved, json.loads(json.dumps(state)))
            trainer.fit(task)
        tensors.append(trainer.state()[0])
    assert tensors[0].keys() == tensors[1].keys()
    for name, value in tensors[0].items():
        assert torch.equal(value, tensors[1][name]), name


def _stop_at_five(trainer: Any) -> None:
    if trainer.step == 5:
        raise KeyboardInterrupt


def test_state_of_another_form_is_refused() -> None:
    tensors, state = learner_in(2, targets="frozen_head").task_state()
    with pytest.raises(CheckpointError, match="'frozen_head' and the learner as 'full'"):
        learner_in(0).load_task_state(tensors, state)
