"""The forms in which earlier tasks' logits are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hypermask_fast.errors import ConfigError
from hypermask_fast.head.frozen import freeze
from hypermask_fast.head.types import FrozenHead
from hypermask_fast.hypernetworks.autograd_frozen import frozen_logits
from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.training.step import TrainingStep
from tests.support.kept_cases import DOUBLE, FORMS, batch, gradients, learner_in, moved


@pytest.mark.parametrize("tasks", [1, 3, 5, 23])
def test_the_quadratic_form_is_the_explicit_sum(passes: str, tasks: int) -> None:
    """Value and all gradients, with fewer and with more tasks than the head's width of 5."""
    weight, old = torch.randn(61, 5, **DOUBLE), torch.randn(61, 5, **DOUBLE)
    bias, old_bias = torch.randn(61, **DOUBLE), torch.randn(61, **DOUBLE)
    hidden, then = torch.randn(tasks + 1, 5, **DOUBLE), torch.randn(tasks, 5, **DOUBLE)
    direction = torch.randn(61, **DOUBLE)
    leaves = [t.clone().requires_grad_() for t in (weight, bias, hidden)]
    frozen = freeze(old, old_bias, then)
    z, regularizer = frozen_logits(leaves[0], leaves[1], leaves[2], frozen)
    (z @ direction + 0.7 * regularizer).backward()
    explicit = [t.clone().requires_grad_() for t in (weight, bias, hidden)]
    logits = explicit[2] @ explicit[0].t() + explicit[1]
    targets = then @ old.t() + old_bias
    wanted = (logits[1:] - targets).square().sum() / tasks
    (logits[0] @ direction + 0.7 * wanted).backward()
    torch.testing.assert_close(z, logits[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(regularizer, wanted, rtol=1e-12, atol=0)
    for ours, theirs in zip(leaves, explicit, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        scale = float(theirs.grad.abs().max())
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12 * scale)


def test_float32_is_as_exact_in_the_quadratic_form_as_in_the_explicit_one() -> None:
    torch.manual_seed(3)
    start = torch.randn(3000, 20), torch.randn(3000), torch.randn(41, 20)
    leaves = [t + 1e-3 * torch.randn_like(t) for t in start]
    frozen = freeze(start[0], start[1], start[2][1:])
    results = []
    for dtype, explicit in ((torch.float64, True), (torch.float32, True), (torch.float32, False)):
        w, b, h = (t.to(dtype, copy=True).requires_grad_() for t in leaves)
        if explicit:
            targets = (start[2][1:].to(dtype) @ start[0].t().to(dtype)) + start[1].to(dtype)
            value = ((h @ w.t() + b)[1:] - targets).square().sum() / 40
        else:
            value = frozen_logits(w, b, h, frozen)[1]
        value.backward()
        assert w.grad is not None
        assert h.grad is not None
        results.append([value.detach().double(), w.grad.double(), h.grad[1:].double()])
    for exact, plain, ours in zip(*results, strict=True):
        assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [None, 1, 3, 7])
@pytest.mark.parametrize("one_pass", [False, True], ids=["ordinary", "one-pass"])
def test_a_task_starts_with_a_residual_of_exactly_zero(
    passes: str, form: str, count: int | None, one_pass: bool, dtype: torch.dtype
) -> None:
    for task in (1, 6, 13):
        learner = learner_in(task, dtype, targets=form, regularized_tasks=count, lam=0.0)
        before = learner.hypernetwork.embeddings.detach().clone()
        if one_pass:
            optimizer = FactoredAdam(learner.parameters(), step_in_backward=True)
            assert TrainingStep(learner, optimizer)(*batch(learner), task).output_reg.item() == 0.0
            assert learner.hypernetwork.head.weight.grad is None
        else:
            for _ in range(4):
                value, *_ = gradients(learner, task)
                assert value.item() == 0.0
            FactoredAdam(learner.parameters()).step()
        same = (learner.hypernetwork.embeddings == before).all(1)
        assert same[:task].all()
        assert not same[task]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", [0, 2, 7])
@pytest.mark.parametrize(
    ("passes", "capturable"),
    [
        pytest.param("native", False, id="native"),
        pytest.param("pytorch", False, id="pytorch"),
        pytest.param("pytorch", True, id="pytorch-without-numbers"),
    ],
    indirect=["passes"],
)
def test_one_pass_takes_the_steps_of_an_ordinary_loop(
    passes: str, capturable: bool, form: str, task: int
) -> None:
    for count in (None, 2):
        options = {"targets": form, "regularized_tasks": count, "sparsity": 30.0}
        ours, theirs = moved(learner_in(task, **options)), moved(learner_in(task, **options))
        one_pass: Any = {"step_in_backward": True, "capturable": capturable}
        step = TrainingStep(ours, FactoredAdam(ours.parameters(), weight_decay=0.1, **one_pass))
        optimizer = torch.optim.Adam(theirs.parameters(), weight_decay=0.1)
        for i in range(10):
            a = step(*batch(ours, i), task)
            b = theirs.losses(*batch(theirs, i), task)
            optimizer.zero_grad()
            b.total.backward()
            optimizer.step()
            assert a.output_reg.item() == pytest.approx(b.output_reg.item(), rel=1e-9)
            assert a.total.item() == pytest.approx(b.total.item(), rel=1e-9)
            assert (a.output_reg.item() > 0) == (task > 0)
            assert ours.hypernetwork.head.weight.grad is None
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-9, msg=name)


def test_a_frozen_head_trains_as_full_targets_do(passes: str) -> None:
    """The gradient of the head is dense; FactoredAdam takes it as torch's Adam does."""
    learners = [moved(learner_in(6, targets=form)) for form in ("full", "frozen_head")]
    optimizers = [
        torch.optim.Adam(learners[0].parameters()),
        FactoredAdam(learners[1].parameters()),
    ]
    for i in range(10):
        for learner, optimizer in zip(learners, optimizers, strict=True):
            optimizer.zero_grad()
            learner.losses(*batch(learner, i), 6).total.backward()
            optimizer.step()
    for (name, p), q in zip(learners[0].named_parameters(), learners[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bfloat16_targets_keep_what_rounds_to_them(dtype: torch.dtype) -> None:
    full, half = (learner_in(4, dtype, targets=form) for form in ("full", "bfloat16"))
    exact, kept = full.task_state()[0]["targets"], half.task_state()[0]["targets"]
    assert kept.dtype == torch.bfloat16
    assert torch.equal(kept, exact.bfloat16())
    assert kept.nbytes * (exact.element_size() // 2) == exact.nbytes
    moved(half)
    z = half.hypernetwork.logits(torch.arange(4))
    residuals = torch.where(z.bfloat16() == kept, 0, z - kept.to(dtype))
    assert 0 < int((residuals == 0).sum()) < residuals.numel()
    wanted = residuals.square().sum() / 4
    torch.testing.assert_close(gradients(half, 4)[0], wanted.detach())


@pytest.mark.parametrize("form", FORMS)
def test_targets_move_and_keep_a_dtype_of_their_own(form: str) -> None:
    learner = moved(learner_in(3, torch.float32, targets=form)).double()
    tensors = learner.task_state()[0]
    dtypes = {name: value.dtype for name, value in tensors.items() if name != "previous"}
    own = {"targets": torch.bfloat16 if form == "bfloat16" else torch.float64}
    assert dtypes == {name: own.get(name, torch.float64) for name in dtypes}
    assert gradients(learner, 3)[0].dtype == torch.float64
    assert not any("_kept" in name for name in learner.state_dict())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        pytest.param({}, "2.6 MiB for each earlier task", id="full"),
        pytest.param(
            {"targets": "bfloat16", "regularized_tasks": 3},
            "1.3 MiB for each earlier task, in bfloat16; 3 of them in each step",
            id="bfloat16",
        ),
        pytest.param(
            {"targets": "frozen_head"},
            "13.0 MiB for a frozen head, whatever the number of earlier tasks",
            id="frozen",
        ),
    ],
)
def test_the_report_states_the_memory(options: dict[str, Any], line: str) -> None:
    # N is 681,653, in float32; the head's width is 4.
    learner = HyperMask(MLP(600, (850, 200), 3), embedding_dim=2, hidden=(4,), **options)
    assert f"targets while training: {line}" in learner.report().splitlines()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"targets": "frozen"}, "'frozen'.*choose one of full, bfloat16", id="form"),
        pytest.param(
            {"regularized_tasks": 0},
            "regularized_tasks=0 is out of range; give at least 1",
            id="none",
        ),
        pytest.param(
            {"targets": "frozen_head", "head": "chunked"},
            "the hypernetwork is a ChunkedHypernetwork.*use head='full'",
            id="chunked",
        ),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    net = MLP(4, (3,), 2)
    with pytest.raises(ConfigError, match=message):
        HyperMask(net, embedding_dim=2, **options)
    # The network was left as it was.
    HyperMask(net, embedding_dim=2)


def test_the_memory_of_a_frozen_head_does_not_grow_with_the_tasks() -> None:
    sizes = []
    for tasks in (2, 30):
        tensors, _ = learner_in(tasks, targets="frozen_head").task_state()
        assert "targets" not in tensors
        sizes.append(sum(v.nbytes for name, v in tensors.items() if name != "frozen_hidden"))
    assert sizes[0] == sizes[1]


def test_a_frozen_head_does_not_follow_the_hypernetwork() -> None:
    hypernetwork = Hypernetwork(10, embedding_dim=3, hidden=(4,))
    frozen = hypernetwork.frozen(torch.arange(3))
    assert isinstance(frozen, FrozenHead)
    assert hypernetwork.frozen(torch.arange(1)) is None
    before = [value.clone() for value in frozen]
    with torch.no_grad():
        for parameter in hypernetwork.parameters():
            parameter.add_(1)
    assert all(torch.equal(now, then) for now, then in zip(frozen, before, strict=True))
    assert not any(value.requires_grad for value in frozen)
