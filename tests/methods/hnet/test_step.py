"""A step against the plain algorithm, in float64 and from the same state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.steps.hnet import (
    TINY,
    HNETCase,
    make_batch,
    make_learner,
    make_ours,
    make_plain,
)
from hypermask_fast.methods.hnet.learner import HNET
from hypermask_fast.native import library

DOUBLE = torch.float64
STEPS = 4


def shared_of(learner: HNET) -> list[Tensor]:
    hypernetwork: Any = learner.hypernetwork
    layers = [m for m in (*hypernetwork.trunk, hypernetwork.head) if isinstance(m, nn.Linear)]
    found = [p for layer in layers for p in (layer.weight, layer.bias)]
    chunks = getattr(hypernetwork, "chunk_embeddings", None)
    return found if chunks is None else [*found, chunks]


def with_options(case: HNETCase, **options: Any) -> HNETCase:
    values = {**vars(case), "options": tuple({**dict(case.options), **options}.items())}
    return HNETCase(**values)


@pytest.mark.parametrize("passes", ["native", "pytorch"])
@pytest.mark.parametrize("name", ["split-mnist-t4", "split-mnist-full-t4", "permuted-mnist-t9"])
@pytest.mark.parametrize("targets", ["full", "recomputed", "frozen_head"])
def test_steps_are_those_of_the_plain_algorithm(
    name: str, targets: str, passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if passes == "pytorch":
        monkeypatch.setattr(library, "load", lambda: None)
    elif library.load() is None:
        pytest.skip(f"the native passes are not available: {library.status()}")
    if targets == "frozen_head" and "full" not in name:
        pytest.skip("the head is chunked")
    case = TINY[name]
    plain = make_plain(make_learner(case, DOUBLE), case)
    learner = make_learner(with_options(case, targets=targets), DOUBLE)
    step, batch = make_ours(learner, case), make_batch(case, DOUBLE)
    for number in range(STEPS):
        expected, found = plain.step(*batch), step(*batch)
        torch.testing.assert_close(found.task, expected[0], rtol=1e-10, atol=1e-12)
        # The kept outputs differ by rounding alone where they are made anew.
        torch.testing.assert_close(found.output_reg, expected[1], rtol=1e-8, atol=1e-12)
        for p, q in zip(shared_of(learner), plain.shared, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-9, msg=f"step {number}")
        embeddings = learner.hypernetwork.embeddings[: case.earlier + 1]
        torch.testing.assert_close(embeddings, torch.stack(list(plain.embeddings)))


@pytest.mark.parametrize("size", [7, 89, 1000], ids=lambda size: f"chunk-{size}")
def test_chunks_of_any_size(size: int) -> None:
    """Thirteen of them, one that is the network, and one that is larger."""
    case = with_options(TINY["split-mnist-t4"], chunk_size=size)
    plain = make_plain(make_learner(case, DOUBLE), case)
    learner = make_learner(case, DOUBLE)
    step, batch = make_ours(learner, case), make_batch(case, DOUBLE)
    for _ in range(STEPS):
        expected, found = plain.step(*batch), step(*batch)
        torch.testing.assert_close(found.output_reg, expected[1], rtol=1e-8, atol=1e-12)
    for p, q in zip(shared_of(learner), plain.shared, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["split-mnist-t4", "split-mnist-full-t4"])
def test_a_step_does_not_depend_on_threads(name: str) -> None:
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            learner = make_learner(TINY[name])
            step = make_ours(learner, TINY[name])
            for _ in range(2):
                step(*make_batch(TINY[name]))
        finally:
            torch.set_num_threads(before)
        results.append([p.detach().clone() for p in shared_of(learner)])
    assert all(map(torch.equal, *results))
