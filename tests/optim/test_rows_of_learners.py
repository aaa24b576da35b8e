"""In a loop of one's own: rows of tasks that have no gradient stay, with every torch optimizer."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.methods.protocol import Losses, ParameterGroup
from hypermask_fast.optim.factored_adam import FactoredAdam
from tests.support.hypermask_cases import batch, make, mixed_net, tables

FOREACH = {"single": {"foreach": False}, "foreach": {"foreach": True}}
FUSED = {**FOREACH, "fused": {"fused": True}}
ONE = {"default": dict[str, Any]()}
DECAY = {"weight_decay": 0.1}

# Each class of torch.optim: options that would move rows by themselves, and its forms.
OPTIMIZERS: dict[str, list[tuple[dict[str, Any], dict[str, dict[str, Any]]]]] = {
    "Adadelta": [({"lr": 0.5, **DECAY}, FOREACH)],
    "Adafactor": [({"lr": 0.05, **DECAY}, FOREACH)],
    "Adagrad": [({"lr": 0.05, "initial_accumulator_value": 0.1, **DECAY}, FUSED)],
    "Adam": [({"lr": 0.02, **DECAY}, FUSED), ({"lr": 0.02, "amsgrad": True}, FUSED)],
    "AdamW": [({"lr": 0.02, **DECAY}, FUSED)],
    "Adamax": [({"lr": 0.02, **DECAY}, FOREACH)],
    "ASGD": [({"lr": 0.02, **DECAY}, FOREACH)],
    "LBFGS": [({"lr": 0.1, "max_iter": 3}, ONE), ({"line_search_fn": "strong_wolfe"}, ONE)],
    "Muon": [({"lr": 0.02, **DECAY}, ONE)],
    "NAdam": [({"lr": 0.02, **DECAY}, FOREACH), ({"decoupled_weight_decay": True}, FOREACH)],
    "RAdam": [({"lr": 0.02, **DECAY}, FOREACH)],
    "RMSprop": [({"lr": 0.02, "momentum": 0.9, **DECAY}, FOREACH)],
    "Rprop": [({"lr": 0.02}, FOREACH)],
    "SGD": [
        ({"lr": 0.05, "momentum": 0.9, **DECAY}, FUSED),
        ({"lr": 0.05, "momentum": 0.9, "nesterov": True, "maximize": True, **DECAY}, FUSED),
    ],
}
CASES = [
    pytest.param(getattr(torch.optim, name), {**options, **form}, id=f"{name}-{i}-{of_form}")
    for name, variants in OPTIMIZERS.items()
    for i, (options, forms) in enumerate(variants)
    for of_form, form in forms.items()
] + [
    pytest.param(FactoredAdam, {"lr": 0.02, **DECAY, **options}, id=f"FactoredAdam-{name}")
    for name, options in {
        **FUSED,
        "adamw": {"decoupled_weight_decay": True},
        "in-backward": {"step_in_backward": True},
        "capturable": {"capturable": True},
        "bfloat16": {"moments_dtype": torch.bfloat16},
    }.items()
]

Make = Callable[..., Optimizer]


def learner_of(tasks: int = 2, capacity: int = 4) -> HyperMask:
    """A learner with normalisation for each task, and rows for tasks that were not added."""
    torch.manual_seed(0)
    return make(mixed_net(), tasks=tasks, capacity=capacity, beta=0.5, bn="per_task")


def parameters_of(make_one: Any, learner: HyperMask) -> Iterable[nn.Parameter]:
    matrices_only = make_one is torch.optim.Muon
    return [p for p in learner.parameters() if p.dim() == 2 or not matrices_only]


def take_step(
    learner: HyperMask, optimizer: Optimizer, task: int, *, in_closure: bool = False
) -> None:
    x, y = batch(learner)

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        losses = learner.losses(x, y, task, optimizer=optimizer)
        losses.total.backward()
        return losses.total

    if in_closure or isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(evaluate)
    else:
        evaluate()
        optimizer.step()


def copies(learner: HyperMask) -> list[Tensor]:
    return [table.detach().clone() for table in tables(learner)]


def check_second_task(learner: HyperMask, before: list[Tensor]) -> None:
    """What steps on task 1 may move, and must: ``before`` is from before them."""
    embeddings, *norms = tables(learner)
    assert norms
    # The regularizer trains the embeddings of all learned tasks.
    assert not torch.equal(embeddings[0], before[0][0])
    assert not torch.equal(embeddings[1], before[0][1])
    assert torch.equal(embeddings[2:], before[0][2:])
    for table, values in zip(norms, before[1:], strict=True):
        assert torch.equal(table[0], values[0])
        assert not torch.equal(table[1], values[1])
        assert torch.equal(table[2:], values[2:])


def test_every_optimizer_of_torch_is_here() -> None:
    classes = {
        name
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
    }
    assert classes == {*OPTIMIZERS, "SparseAdam"}


@pytest.mark.parametrize("in_closure", [False, True], ids=["", "closure"])
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_steps_of_a_task_move_no_other_row(
    kind: Make, options: dict[str, Any], in_closure: bool
) -> None:
    """Nor by what an optimizer kept of the task before; and all embeddings learned train."""
    learner = learner_of()
    optimizer = kind(parameters_of(kind, learner), **options)
    for task in range(2):
        learner.begin_task(task)
        before = copies(learner)
        for _ in range(3):
            take_step(learner, optimizer, task, in_closure=in_closure)
        if task == 0:
            for table, values in zip(tables(learner), before, strict=True):
                assert torch.equal(table[1:], values[1:])
                assert not torch.equal(table[0], values[0])
        learner.end_task()
    check_second_task(learner, before)


def test_a_sparse_optimizer_is_refused_by_itself() -> None:
    learner = learner_of()
    optimizer = torch.optim.SparseAdam(list(learner.parameters()))
    learner.begin_task(0)
    before = copies(learner)
    with pytest.raises(RuntimeError, match="does not support dense gradients"):
        take_step(learner, optimizer, 0)
    assert all(map(torch.equal, tables(learner), before))


def deep_copied(learner: HyperMask) -> HyperMask:
    return copy.deepcopy(learner)


def pickled(learner: HyperMask) -> HyperMask:
    file = io.BytesIO()
    torch.save(learner, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def assigned(learner: HyperMask) -> HyperMask:
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    learner.load_state_dict(state, assign=True)
    return learner


def converted(learner: HyperMask) -> HyperMask:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return learner.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.mark.parametrize("change", [deep_copied, pickled, assigned, converted])
def test_tables_stay_tables(change: Callable[[HyperMask], HyperMask]) -> None:
    """Within a task, where nothing but the forward tells."""
    learner = learner_of()
    for task in range(2):
        learner.begin_task(task)
        take_step(learner, torch.optim.SGD(learner.parameters(), 0.1), task)
        if task == 0:
            learner.end_task()
    learner = change(learner)
    before = copies(learner)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=0.05, weight_decay=0.5)
    for _ in range(2):
        take_step(learner, optimizer, 1)
    check_second_task(learner, before)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {"lr": 0.02, **DECAY, "foreach": True}),
        (torch.optim.Rprop, {"lr": 0.02}),
        (torch.optim.Adafactor, {"lr": 0.02}),
        (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
        (FactoredAdam, {"lr": 0.02, **DECAY}),
    ],
)
def test_an_optimizer_goes_on_where_tables_grow(kind: Make, options: dict[str, Any]) -> None:
    """As with enough rows from the start, where it looks at rows alone."""
    found = []
    for capacity in (2, 4):
        large, learner = learner_of(capacity=4), learner_of(capacity=capacity)
        values = large.state_dict()
        for name, own in learner.state_dict().items():
            fits = own.shape == values[name].shape
            own.copy_(values[name] if fits else values[name][:capacity])
        optimizer = kind(learner.parameters(), **options)
        torch.manual_seed(3)
        for task in range(3):
            if task == 2:
                learner.add_task()
                with torch.no_grad():
                    learner.hypernetwork.embeddings[2:] = large.hypernetwork.embeddings[2:]
            learner.begin_task(task)
            for _ in range(2):
                take_step(learner, optimizer, task)
            learner.end_task()
        assert learner.capacity == 4
        found.append([p.detach() for p in learner.parameters()])
    for ours, exact in zip(*found, strict=True):
        if kind is not torch.optim.Adafactor:  # which averages over all rows
            torch.testing.assert_close(ours, exact)
        assert ours.shape == exact.shape


class Scaled(Learner):
    """A method with a table that nothing but its groups of parameters tells of."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 3), capacity=4)
        self.scales = nn.Parameter(torch.ones(4, 3))

    def parameter_groups(self, phase: str = "train") -> list[ParameterGroup]:
        shared = ParameterGroup(list(self.net.parameters()))
        return [shared, ParameterGroup([self.scales], row_sparse=True)]

    def losses(
        self, x: Tensor, y: Tensor, task: int, *, optimizer: Optimizer | None = None
    ) -> Losses:
        outputs = self.net(x) * self.scales[task]
        loss = nn.functional.cross_entropy(outputs, y)
        return Losses(loss, loss, outputs, {})


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, FactoredAdam])
def test_the_tables_of_another_method_are_held(kind: Make) -> None:
    learner = Scaled()
    optimizer = kind(learner.parameters(), lr=0.1, **DECAY)
    for task in range(2):
        learner.add_task()
        learner.begin_task(task)
        before = learner.scales.detach().clone()
        for _ in range(2):
            x, y = torch.randn(8, 5), torch.randint(3, (8,))
            optimizer.zero_grad()
            learner.losses(x, y, task).total.backward()
            optimizer.step()
        learner.end_task()
        assert (learner.scales != before).any(1).tolist() == [i == task for i in range(4)]


def test_a_step_within_a_step_holds_rows_over_both() -> None:
    """A subclass may change parameters before the step of its base."""

    class Decaying(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.mul_(0.9)
            return super().step(closure)

    learner = learner_of()
    torch.optim.SGD(learner.parameters(), 0.1)
    optimizer = Decaying(learner.parameters(), lr=0.1)
    learner.begin_task(0)
    before = copies(learner)
    take_step(learner, optimizer, 0)
    for table, values in zip(tables(learner), before, strict=True):
        assert torch.equal(table[1:], values[1:])
        assert not torch.equal(table[0], values[0])


def test_a_step_that_raises_is_not_put_back_by_the_next() -> None:
    learner = learner_of()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1, **DECAY)
    learner.begin_task(0)

    def fails() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(fails)
    with torch.no_grad():
        for table in tables(learner):
            table.add_(1.0)
    before = copies(learner)
    take_step(learner, optimizer, 0)
    for table, values in zip(tables(learner), before, strict=True):
        assert torch.equal(table[1:], values[1:])
        assert not torch.equal(table[0], values[0])


def test_what_wraps_an_optimizer_holds_rows_too() -> None:
    learner = learner_of()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=0.02, weight_decay=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for task in range(2):
        learner.begin_task(task)
        before = copies(learner)
        average = torch.optim.swa_utils.AveragedModel(learner)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(learner.losses(*batch(learner), task).total).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            average.update_parameters(learner)
        learner.end_task()
    check_second_task(learner, before)
    check_second_task(average.module, before)


def test_optimizers_without_tables_are_left_alone() -> None:
    learner_of()
    plain = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0, **DECAY)
    seen = []
    optimizer.register_step_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)))
    start = [p.detach().clone() for p in plain.parameters()]
    for p in plain.parameters():
        p.grad = torch.zeros_like(p)

    def closure() -> float:
        return 1.0

    assert optimizer.step(closure) == 1.0
    assert seen == [((optimizer, closure), {})]
    for p, value in zip(plain.parameters(), start, strict=True):
        torch.testing.assert_close(p, 0.9 * value)
