"""The regularizer over a task's own outputs and the shared weights, against the plain algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.steps.hnet import TINY, PlainHNET, make_batch, make_learner, make_ours, make_plain
from hypermask_fast.backends.choice import backend
from hypermask_fast.errors import ConfigError
from hypermask_fast.methods.hnet.learner import HNET
from hypermask_fast.native import library
from tests.methods.hnet.test_step import shared_of, with_options
from tests.support.hnet_cases import make, train

DOUBLE = torch.float64
STEPS = 3


class OwnOutputsOnly(PlainHNET):
    """Leaves no residual at the output layer's weights of other tasks."""

    classes: int

    def kept_at(self, task: int) -> Tensor:
        parts = []
        for name, p in self.net.named_parameters():
            own = torch.ones(p.shape, dtype=torch.bool)
            if name.startswith("classifier."):
                own[:] = False
                own[task * self.classes : (task + 1) * self.classes] = True
            parts.append(own.flatten())
        return torch.cat(parts)

    def theta(self, shared: Sequence[Tensor], embedding: Tensor) -> Tensor:
        weights = super().theta(shared, embedding)
        if shared is self.shared:
            return weights
        places = [e.data_ptr() for e in self.embeddings]
        task = places.index(embedding.data_ptr())
        return torch.where(self.kept_at(task), weights, self.targets[task])


@pytest.mark.parametrize("way", ["native", "pytorch", "reference", "torch-adam"])
@pytest.mark.parametrize("name", ["split-mnist-t4", "split-mnist-full-t4"])
@pytest.mark.parametrize("targets", ["full", "recomputed"])
def test_steps_are_those_of_the_plain_algorithm(
    name: str, targets: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "pytorch":
        monkeypatch.setattr(library, "load", lambda: None)
    elif way == "native" and library.load() is None:
        pytest.skip(f"the native passes are not available: {library.status()}")
    case = TINY[name]
    plain = make_plain(make_learner(case, DOUBLE), case)
    plain.__class__ = OwnOutputsOnly
    assert isinstance(plain, OwnOutputsOnly)
    plain.classes = case.classes
    learner = make_learner(with_options(case, regularized_outputs="own", targets=targets), DOUBLE)
    step, batch = make_ours(learner, case), make_batch(case, DOUBLE)
    if way == "torch-adam":
        main, embedding = learner.parameter_groups()
        optimizers = {
            "main": torch.optim.Adam(main.params, lr=1e-3),
            "embedding": torch.optim.Adam(embedding.params, lr=1e-3),
        }

        def step(x: Tensor, y: Tensor) -> Any:
            return learner.step(x, y, case.earlier, optimizers).detached()

    every = make_plain(make_learner(case, DOUBLE), case)
    for _ in range(STEPS):
        expected, other = plain.step(*batch), every.step(*batch)
        with backend("reference" if way == "reference" else "auto"):
            found = step(*batch)
        torch.testing.assert_close(found.output_reg, expected[1], rtol=1e-8, atol=1e-12)
        assert found.output_reg < other[1]
    for p, q in zip(shared_of(learner), plain.shared, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"head": "full"}], ids=["chunked", "full"])
@pytest.mark.parametrize("targets", ["full", "bfloat16", "recomputed"])
def test_without_the_look_ahead_nothing_moved_leaves_no_residual(
    targets: str, options: dict[str, Any]
) -> None:
    learner = make(regularized_outputs="own", lookahead=False, targets=targets, **options)
    train(learner, 0)
    out = train(learner, 1, steps=3)
    assert out[0].output_reg == 0
    assert 0 < out[-1].output_reg < torch.inf
    assert all(bool(p.isfinite().all()) for p in learner.parameters())


@pytest.mark.parametrize("targets", ["full", "recomputed"])
def test_tasks_of_different_sizes_and_a_sample_of_them(targets: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 6, bias=False))
    learner = HNET(
        net,
        task_heads="multi",
        regularized_outputs="own",
        chunk_size=20,
        targets=targets,
        regularized_tasks=1,
        beta=10.0,
    )
    for classes in ([0, 1], [2, 3, 4], [5]):
        learner.add_task(classes=classes)
    for task, classes in enumerate((2, 3)):
        learner.begin_task(task)
        optimizers = {
            group.optimizer: torch.optim.Adam(group.params, lr=1e-2)
            for group in learner.parameter_groups()
        }
        x, y = torch.randn(4, 5), torch.arange(4) % classes
        learner.step(x, y, task, optimizers)
        learner.end_task()
    learner.begin_task(2)
    ids, kept, _ = learner._kept.at(1, learner.hypernetwork, alone=True)
    assert isinstance(kept, Tensor)
    assert len(kept) == 1
    last = kept[0, -24:].view(6, 4).isnan()
    own = {0: [0, 1], 1: [2, 3, 4]}[int(ids[1])]
    assert not bool(kept[0, :-24].isnan().any())
    assert last.all(1).tolist() == [row not in own for row in range(6)]
    assert last.any(1).tolist() == last.all(1).tolist()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task_heads": "shared"}, "task_heads='shared', where tasks have no outputs"),
        ({"head": "full", "targets": "frozen_head"}, "'frozen_head' keeps all outputs"),
    ],
    ids=["shared", "frozen"],
)
def test_settings_that_do_not_go_with_it_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make(regularized_outputs="own", **options)
