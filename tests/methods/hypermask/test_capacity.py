"""More tasks than there are rows for: the tables grow and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.optim.factored_adam import FactoredAdam
from tests.support.hypermask_cases import batch, make, mixed_net
from tests.support.hypermask_cases import tables as tables_of


def grown(**options: object) -> HyperMask:
    """A learner with a row for each of two tasks, and then a third task."""
    torch.manual_seed(0)
    return make(mixed_net(), tasks=3, capacity=2, **options)


def test_new_rows_start_as_the_first_ones_do() -> None:
    torch.manual_seed(0)
    learner = make(mixed_net(), tasks=2, capacity=2, embedding_dim=2000)
    table, before = learner.hypernetwork.embeddings, learner.hypernetwork.embeddings.clone()
    norms = {name: value.clone() for name, value in learner.norms.state_dict().items()}
    for _ in range(3):
        learner.add_task()
    assert learner.capacity == learner.hypernetwork.capacity == 8
    assert learner.hypernetwork.embeddings is table
    assert torch.equal(table[:2], before)
    # 2000 normal numbers: 5 standard errors of their mean and of their deviation.
    assert torch.all(table[2:].mean(1).abs() < 5 / 2000**0.5)
    assert torch.all((table[2:].std(1) - 1).abs() < 5 / 4000**0.5)
    assert len(table.unique(dim=0)) == 8
    for name, value in learner.norms.state_dict().items():
        assert torch.equal(value, norms[name][:1].expand_as(value)), name


def test_new_rows_are_the_same_in_every_process() -> None:
    rows = []
    for seed in (1, 2):
        learner = grown()
        torch.manual_seed(seed)
        for _ in range(2):
            learner.add_task()
        rows.append(learner.hypernetwork.embeddings[4:])
    assert torch.equal(*rows)


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_task_that_is_being_learned_goes_on(in_backward: bool) -> None:
    """As with enough rows from the start."""
    found: list[list[Tensor]] = []
    for capacity in (2, 4):
        torch.manual_seed(0)
        learner = make(mixed_net(), tasks=2, capacity=4, beta=0.5).double()
        if capacity == 2:
            small = make(mixed_net(), tasks=2, capacity=2, beta=0.5).double()
            state = weights_of(learner)
            tables = {id(p) for p in tables_of(small)}
            rows = {n for n, p in small.named_parameters() if id(p) in tables}
            rows |= {f"norms.{n}" for n, _ in small.norms.named_buffers()}
            small.restore({n: v[:2] if n in rows else v for n, v in state.items()})
            learner = small
        torch.manual_seed(1)
        for task in range(2):
            learner.train().begin_task(task)
            table = learner.hypernetwork.embeddings
            others = [p for p in learner.parameters() if p is not table]
            groups = [{"params": others}, {"params": [table], "row_sparse": True}]
            optimizer = FactoredAdam(groups, lr=0.05, step_in_backward=in_backward)
            for step in range(4):
                if task == 1 and step == 2:
                    learner.add_task()
                out = learner.losses(*batch(learner), task, optimizer=optimizer)
                out.total.backward()
                optimizer.step()
                optimizer.zero_grad()
            learner.end_task()
        found.append([p[:2] if p.shape[0] == 4 else p for p in learner.parameters()])
        assert learner.capacity == 4
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-12)


def test_a_grown_learner_can_be_saved_and_loaded() -> None:
    learner = grown()
    loaded = make(mixed_net(), tasks=0, capacity=2)
    loaded.load_task_state(*learner.task_state())
    loaded.load_state_dict(learner.state_dict())
    x, _ = batch(learner)
    assert torch.equal(loaded.eval()(x, 2), learner.eval()(x, 2))
