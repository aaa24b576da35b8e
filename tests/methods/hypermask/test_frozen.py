"""Frozen tasks: their outputs keep their bits, whatever is trained later."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast.methods.extra_state import moving_of, weights_of
from tests.support.frozen_cases import (
    NETWORKS,
    OPTIMIZERS,
    assert_same,
    bits_of,
    learn,
    made,
    step,
)
from tests.support.hypermask_cases import batch, perturb

each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


@each_optimizer
@pytest.mark.parametrize("earlier", ["frozen", "regularized"])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_keep_their_bits(name: str, earlier: str, optimizer: str) -> None:
    """One optimizer for all tasks, with what it has of the earlier ones; the control changes."""
    learner = made(name, earlier=earlier)
    chosen = OPTIMIZERS[optimizer](learner.parameters())
    if name == "chunked" and optimizer == "in-backward":
        chosen = OPTIMIZERS["adam"](learner.parameters())
    learn(learner, chosen, 0, 1)
    before = bits_of(learner)
    learn(learner, chosen, 2, 3)
    after = bits_of(learner)
    if earlier == "frozen":
        assert learner.frozen == (0, 1, 2, 3)
        assert_same(after, before)
    else:
        assert learner.frozen == ()
        for way in ("mixed", "all", "single 0", "exported 1", "blended"):
            assert not torch.equal(after[way], before[way])


@pytest.mark.parametrize("name", NETWORKS)
def test_freezing_changes_no_output(name: str) -> None:
    learner = made(name)
    learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0, 1)
    before = bits_of(learner)
    learner.freeze_masks()
    after = bits_of(learner)
    blended = before.pop("blended")
    assert_same(after, before)
    torch.testing.assert_close(after["blended"], blended)
    assert learner.frozen == (0, 1)


def test_nothing_that_changes_is_read() -> None:
    """Whatever happens to the learner's parameters and statistics."""
    learner = made("norm-per-task", earlier="frozen")
    learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0, 1)
    before = bits_of(learner)
    perturb(learner)
    with torch.no_grad():
        for buffer in learner.norms.buffers():
            buffer.add_(1)
    learner.sparsity = 60.0
    after = bits_of(learner)
    assert_same(after, before)


def test_layers_form_no_masks_of_frozen_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = made()
    learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0, 1)
    formed: list[Any] = []

    def at_once(network: Any, logits: Any, x: Tensor, ids: Any, *_: Any, **__: Any) -> None:
        formed.append(list(ids))

    monkeypatch.setattr("hypermask_fast.methods.hypermask.masked.outputs_at_once", at_once)
    bits_of(learner)
    assert [0, 1] in formed
    assert [0] in formed
    learner.freeze_masks()
    formed.clear()
    bits_of(learner)
    assert not formed
    learner(torch.randn(2, 5), torch.tensor([0, 2]))
    assert formed == [[2]]


def test_forwards_in_training_mode_move_nothing_that_is_kept() -> None:
    for name in ("norm-per-task", "buffer-and-shared"):
        learner = made(name, earlier="frozen")
        learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0, 1)
        before = bits_of(learner)
        own = copy.deepcopy(moving_of(learner))
        learner.train()(batch(learner)[0], 0)
        assert_same(moving_of(learner), own)
        assert_same(bits_of(learner), before)


def test_steps_regularize_no_frozen_task() -> None:
    learner = made()
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    learn(learner, optimizer, 0, 1)
    learner.freeze_masks()
    learner.train().begin_task(2, steps=2)
    assert learner._kept.earlier == 0
    assert learner._kept.logits is None
    assert learner._previous is None
    losses = [step(learner, optimizer, 2) for _ in range(2)]
    assert all(each.output_reg == each.weight_reg == 0 for each in losses)
    # The ramp of the sparsity is the first task's alone.
    assert learner.step_sparsity == learner.sparsity
    learner.end_task()
    # A task that is not frozen is protected by the next.
    learner.begin_task(3)
    assert learner._kept._host_ids == [3, 2]
    losses = [step(learner, optimizer, 3) for _ in range(2)]
    assert losses[1].output_reg > 0
    assert losses[1].weight_reg > 0


def test_masks_are_those_of_what_is_kept() -> None:
    learner = made(earlier="frozen")
    learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0)
    masks, weights = learner.masks(0), learner.task_weights(0)
    assert masks.keys() == weights.keys() - {learner.exempt}
    for name, mask in masks.items():
        assert torch.equal(mask * weights[name], weights[name])
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert masks["hidden.0.weight"].mean() == 0.8
    assert_same(learner.task_weights(0, sparsity=20.0), weights)
    for read in (learner.masks, learner.task_weights):
        with pytest.raises(ValueError, match="task 0 is frozen, with the masks multiplied"):
            read(0, sparsity=50.0)


def test_a_copy_is_not_frozen_and_other_tasks_come_and_go() -> None:
    learner = made(earlier="frozen", capacity=4)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    learn(learner, optimizer, 0, 1)
    before = bits_of(learner)
    copied = learner.copy_task(0, "copy")
    assert learner.capacity == 8
    learner.rename_task(0, "first")
    added = learner.add_task()
    learner.remove_task(added)
    assert learner.frozen == (0, 1)
    learn(learner, optimizer, copied)
    assert learner.frozen == (0, 1, copied)
    before.pop("blended")
    assert_same(bits_of(learner), before)


def test_an_abandoned_task_leaves_frozen_ones_alone() -> None:
    learner = made(earlier="frozen")
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    learn(learner, optimizer, 0, 1)
    before = bits_of(learner)
    kept = sum(v.nbytes for v in weights_of(learner).values())
    kept -= sum(v.nbytes for v in moving_of(learner).values())
    assert kept == 2 * sum(w.nbytes for w in learner.net.parameters())
    learner.begin_task(2)
    assert not any(name.startswith("frozen") for name in learner._start or {})
    step(learner, optimizer, 2)
    learner.abandon_task()
    assert_same(bits_of(learner), before)


def test_what_cannot_be_frozen_or_begun_is_refused() -> None:
    learner = made()
    learner.freeze_masks()
    assert learner.frozen == ()
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    learn(learner, optimizer, 0)
    learner.begin_task(1)
    with pytest.raises(RuntimeError, match=r"task 1 is being learned; call end_task\(\)"):
        learner.freeze_masks()
    learner.end_task()
    learner.freeze_masks()
    kept = list(learner.frozen_tasks.buffers())
    learner.freeze_masks()
    assert all(a is b for a, b in zip(kept, learner.frozen_tasks.buffers(), strict=True))
    with pytest.raises(RuntimeError, match=r"task 0 is frozen.*copy_task\(0\)"):
        learner.begin_task(0)
    assert re.search(r"frozen tasks: 2; \d+ bytes of masked weights for each", learner.report())
    untrained = made(earlier="frozen")
    untrained.begin_task(0)
    with pytest.raises(RuntimeError, match="still unknown; run learner"):
        untrained.end_task()
    assert untrained.current == 0


def test_kept_weights_move_and_are_told_to_plans() -> None:
    learner = made("norm-per-task", earlier="frozen")
    learn(learner, torch.optim.Adam(learner.parameters(), lr=0.05), 0)
    x = torch.randn(4, 5)
    with torch.no_grad():
        before = learner.eval()(x, 0)
        found = learner.double()(x.double(), 0)
    torch.testing.assert_close(found, before.double(), rtol=1e-5, atol=1e-5)
    parts = learner.memory_parts()["weights of frozen tasks"]
    # Weights; scale, shift, mean and variance of the norm.
    assert sum(p.numel() for p in parts) == 5 * 6 + 6 + 6 * 3 + 3 + 4 * 6
    assert {p.dtype for p in parts} == {torch.float64}
