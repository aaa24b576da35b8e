"""Samples of the earlier tasks in the output regularizer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hypermask_fast.hypernetworks.kept import KeptOutputs
from hypermask_fast.optim.factored_adam import FactoredAdam
from tests.support.hypermask_cases import tables as tables_of
from tests.support.kept_cases import FORMS, gradients, learner_in, moved


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_mean_over_all_samples_is_the_full_regularizer(
    form: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and the gradient of every parameter, over all C(5, k) subsets of the earlier tasks."""
    exact = gradients(moved(learner_in(5, targets=form)), 5)
    learner = moved(learner_in(5, targets=form, regularized_tasks=count))
    every = []
    for subset in itertools.combinations(range(1, 6), count):
        monkeypatch.setattr(KeptOutputs, "_sample", lambda *_, subset=subset: torch.tensor(subset))
        value, *grads = gradients(learner, 5)
        every.append([value, *grads])
        of_embeddings = grads[
            [n for n, _ in learner.named_parameters()].index("hypernetwork.embeddings")
        ]
        rows = of_embeddings.any(1).nonzero().flatten().tolist()
        assert rows == [*(place - 1 for place in subset), 5]
    for wanted, values in zip(exact, zip(*every, strict=True), strict=True):
        mean = torch.stack(values).mean(0)
        torch.testing.assert_close(mean, wanted, rtol=1e-11, atol=1e-12)


def test_every_subset_is_drawn_as_often() -> None:
    """5000 draws of 2 of 5 tasks: 10 subsets, chi-squared of 9 degrees of freedom."""
    targets = KeptOutputs("full", 2)
    targets._seed = 0
    targets._set_ids([3, 0, 1, 2, 4, 5], torch.device("cpu"))
    draws = [tuple(targets._sample(step).tolist()) for step in range(5000)]  # type: ignore[union-attr]
    subsets = list(itertools.combinations(range(1, 6), 2))
    assert set(draws) == set(subsets)
    # The one in a million quantile.
    assert sum((draws.count(s) - 500) ** 2 / 500 for s in subsets) < 45.1


def test_samples_are_a_function_of_seed_task_and_step() -> None:
    def drawn(seed: int, task: int, number: Callable[[int], Any] = int) -> list[list[int]]:
        torch.manual_seed(seed)
        targets = KeptOutputs("full", 3)
        torch.rand(5)
        targets._set_ids([task, *range(20)], torch.device("cpu"))
        samples = [targets._sample(number(step)) for step in range(1, 9)]
        return [sample.tolist() for sample in samples if sample is not None]

    assert drawn(1, 25) == drawn(1, 25, torch.tensor)
    assert drawn(1, 25) != drawn(2, 25)
    assert drawn(1, 25) != drawn(1, 26)


@pytest.mark.parametrize("count", [5, 6, 100])
def test_as_many_as_there_are_means_all(count: int) -> None:
    a, b = moved(learner_in(5)), moved(learner_in(5, regularized_tasks=count))
    assert all(torch.equal(x, y) for x, y in zip(gradients(a, 5), gradients(b, 5), strict=True))


def test_tasks_that_were_not_drawn_stay_where_they_are() -> None:
    learner = moved(learner_in(6, regularized_tasks=2))
    tables = tables_of(learner)
    optimizer = FactoredAdam([{"params": tables, "row_sparse": True}])
    changed = set()
    for i in range(12):
        before = learner.hypernetwork.embeddings.detach().clone()
        gradients(learner, 6)
        optimizer.step()
        rows = (learner.hypernetwork.embeddings != before).any(1).nonzero().flatten().tolist()
        assert len(rows) == 3, i
        assert rows[-1] == 6
        changed.update(rows)
    assert changed == set(range(7))


@pytest.mark.parametrize("form", ["full", "bfloat16"])
def test_a_chunked_head_takes_logits_and_samples(form: str) -> None:
    options = {"head": "chunked", "chunk_size": 17, "chunk_embedding_dim": 2, "targets": form}
    learner = learner_in(5, torch.float32, regularized_tasks=2, **options)
    for _ in range(4):
        assert gradients(learner, 5)[0].item() == 0.0
    value, *_ = gradients(moved(learner), 5)
    assert value.item() > 0
