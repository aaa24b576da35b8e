"""The forms in which earlier tasks' logits are kept, and samples of the earlier tasks."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.head import tiles
from hypermask_fast.head.frozen import freeze
from hypermask_fast.head.types import FrozenHead
from hypermask_fast.hypernetworks.autograd_frozen import frozen_logits
from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.hypernetworks.kept import KeptOutputs
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.native import library
from hypermask_fast.networks import MLP
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.runs import run
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.step import TrainingStep
from tests.support.hypermask_cases import tables as tables_of

FORMS = ("full", "bfloat16", "frozen_head")
DOUBLE: Any = {"dtype": torch.float64}


@pytest.fixture(params=["native", "pytorch"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pytorch":
        monkeypatch.setenv("HYPERMASK_FAST_NATIVE", "0")
        # Small enough for several tiles.
        monkeypatch.setitem(tiles._TILE_BYTES, "cpu", 1 << 12)
    elif library.load() is None:
        pytest.skip(library.status())
    return request.param


def learner_in(task: int, dtype: torch.dtype = torch.float64, **options: Any) -> HyperMask:
    """A learner in a task with ``task`` earlier ones, in the state that it began with."""
    torch.manual_seed(1)
    settings = {"embedding_dim": 3, "hidden": (7, 4), "beta": 0.5, "capacity": 40, **options}
    learner = HyperMask(MLP(9, (11,), 3).to(dtype), **settings)
    for j in range(task + 1):
        learner.add_task()
        learner.begin_task(j)
        if j < task:
            learner.end_task()
    return learner


def moved(learner: HyperMask) -> HyperMask:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return learner


def batch(learner: HyperMask, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 9, generator=generator).to(learner.hypernetwork.head.weight.dtype)
    return x, torch.randint(3, (8,), generator=generator)


def gradients(learner: HyperMask, task: int) -> list[Tensor]:
    learner.zero_grad()
    out = learner.losses(*batch(learner), task)
    out.total.backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.parameters()]
    return [out.output_reg.detach(), *(grad.to_dense() for grad in found)]


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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_mean_over_all_samples_is_the_full_regulariser(
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
            {"regularized_tasks": 0}, "regularized_tasks is 0; give at least 1", id="none"
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


@pytest.mark.parametrize("form", ["full", "bfloat16"])
def test_a_chunked_head_takes_logits_and_samples(form: str) -> None:
    options = {"head": "chunked", "chunk_size": 17, "chunk_embedding_dim": 2, "targets": form}
    learner = learner_in(5, torch.float32, regularized_tasks=2, **options)
    for _ in range(4):
        assert gradients(learner, 5)[0].item() == 0.0
    value, *_ = gradients(moved(learner), 5)
    assert value.item() > 0


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
