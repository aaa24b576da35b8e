"""What of a training step goes through torch.compile: how often, with what results, and if not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypermask_fast.backends.compiled import CompiledModule, Compiler
from hypermask_fast.errors import ConfigError, TrainingError
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.scenarios import split_digits
from hypermask_fast.training.step import TrainingStep
from hypermask_fast.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counter:
    """A backend that counts graphs and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))


def run(
    compiler: Compiler | None,
    tasks: int,
    net: Callable[[], nn.Module] = lambda: MLP(6, (5,), 3),
    **options: Any,
) -> tuple[dict[str, Tensor], list[float]]:
    """Learn some tasks, two steps each, and look at the earlier ones; the end and all losses."""
    torch.manual_seed(0)
    settings = {"embedding_dim": 3, "hidden": (4,), "sparsity": 20.0, "beta": 0.5, "capacity": 100}
    learner = HyperMask(net(), **{**settings, **options}, example_input=torch.zeros(2, 6))
    if compiler is not None:
        learner.compile_steps(compiler)
    losses: list[float] = []
    for task in range(tasks):
        learner.add_task(classes=[0, 1, 2] if task % 2 else [0, 1])
        learner.begin_task(task, steps=2)
        optimizer = FactoredAdam(
            learner.parameters(), step_in_backward=learner.hypernetwork.can_update
        )
        step = TrainingStep(learner.train(), optimizer)
        for _ in range(2):
            out = step(torch.randn(8, 6), torch.randint(2, (8,)), task)
            losses += [out.total.item(), out.output_reg.item()]
            if len(losses) % 4 == 2:
                # The residual of a task's first step is exactly 0: targets come from the same code.
                assert losses[-1] == 0.0
        learner.end_task()
        learner.eval()
        with torch.no_grad():
            learner(torch.randn(task + 3, 6), task)
    return learner.state_dict(), losses


def test_three_compilations_over_a_hundred_tasks() -> None:
    counter = Counter()
    state, losses = run(Compiler(True, counter), 100)
    assert counter.graphs == 3
    expected, expected_losses = run(None, 100)
    assert losses == expected_losses
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"net": normalised}, id="norm-dropout"),
        pytest.param({"net": normalised, "dropout": "first_step"}, id="first-step"),
        pytest.param({"net": normalised, "bn": "batch", "dropout": "off"}, id="batch"),
        pytest.param({"targets": "frozen_head"}, id="frozen-head"),
        pytest.param({"regularized_tasks": 2}, id="sampled"),
        pytest.param({"head": "chunked", "chunk_size": 20, "chunk_embedding_dim": 2}, id="chunked"),
    ],
)
def test_other_settings_need_no_more(options: dict[str, Any]) -> None:
    counter = Counter()
    state, losses = run(Compiler(True, counter), 6, **options)
    assert 1 <= counter.graphs <= 3
    expected, expected_losses = run(None, 6, **options)
    assert losses == expected_losses
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def test_auto_compiles_on_cuda_only() -> None:
    counter = Counter()
    compiler = Compiler("auto", counter)
    run(compiler, 2)
    assert counter.graphs == 0
    assert compiler.status == "no: 'auto' compiles on cuda only, and the learner is on cpu"
    assert not Compiler(False).enabled(torch.device("cuda"))
    assert Compiler().enabled(torch.device("cuda"))
    with pytest.raises(ConfigError, match="compile is 'on'; choose one of True, False, 'auto'"):
        Compiler("on")


def broken(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    raise RuntimeError("no compiler here\nand a second line")


def test_a_failure_is_one_warning_and_everything_runs_as_it_is() -> None:
    compiler = Compiler("auto", broken)
    enabled = compiler.enabled
    compiler.enabled = lambda device: enabled(torch.device("cuda"))  # type: ignore[method-assign]
    with pytest.warns(RuntimeWarning, match=r"without torch\.compile: .*no compiler here") as seen:
        state, losses = run(compiler, 3)
    assert len(seen) == 1
    assert compiler.status.startswith("no: Sequential could not be compiled (BackendCompilerFailed")
    expected, expected_losses = run(None, 3)
    assert losses == expected_losses
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert not compiler.enabled(torch.device("cuda"))
    with pytest.raises(TrainingError, match=r"compile is True and Sequential .* no compiler here"):
        run(Compiler(True, broken), 1)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x + 1


def test_a_graph_break_is_a_failure_and_an_error_of_the_module_is_its_own() -> None:
    compiler = Compiler(True, Counter())
    with pytest.raises(TrainingError, match="Broken could not be compiled"):
        CompiledModule(Broken(), compiler)(torch.ones(2))
    module = CompiledModule(nn.Linear(3, 2), compiler)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        module(torch.ones(2, 5))
    assert compiler.status == "yes"
    assert module(torch.ones(2, 3)).shape == (2, 2)


def test_any_number_of_rows_is_one_compilation_and_one_row_another() -> None:
    counter = Counter()
    module = CompiledModule(nn.Linear(3, 2), Compiler(True, counter), dynamic_rows=True)
    for rows in (6, 7, 2, 1, 1, 9):
        assert module(torch.ones(rows, 3)).shape == (rows, 2)
    assert counter.graphs == 2


def test_copies_of_a_learner_compile_anew() -> None:
    counter = Counter()
    module = CompiledModule(nn.Linear(3, 2), Compiler(True, counter))
    x = torch.ones(2, 3)
    expected = module(x)
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        twin._module.weight.zero_()
    assert not torch.equal(twin(x), module(x))
    assert counter.graphs == 1
    simple = CompiledModule(nn.Linear(3, 2), Compiler(True, "eager"))
    assert pickle.loads(pickle.dumps(simple))(x).shape == (2, 2)


def test_a_trainer_compiles_once_for_all_its_tasks() -> None:
    counter = Counter()
    digits = split_digits(tasks=4)
    accuracies = []
    for mode in (True, False):
        torch.manual_seed(0)
        learner = HyperMask(MLP(64, (5,), 2), embedding_dim=3, hidden=(4,), capacity=4)
        trainer = Trainer(learner, steps=3, progress=False, compile=mode)
        trainer._compiler.backend = counter
        for task in digits:
            trainer.fit(task)
        accuracies.append(str(trainer.accuracy.tolist()))
        assert trainer.status()["compile"] == ("yes" if mode else "no: it is off")
    assert counter.graphs == 3
    assert accuracies[0] == accuracies[1]


@pytest.mark.gpu
def test_inductor_on_cuda() -> None:
    compiler = Compiler()
    torch.manual_seed(0)
    learner = HyperMask(MLP(6, (5,), 3), embedding_dim=3, capacity=5).cuda()
    learner(torch.zeros(2, 6, device="cuda"), learner.add_task())
    learner.compile_steps(compiler)
    twin = copy.deepcopy(learner)
    twin.compile_steps(Compiler(False))
    x, y = torch.randn(8, 6, device="cuda"), torch.randint(3, (8,), device="cuda")
    totals = []
    for each in (learner, twin):
        each.begin_task(0)
        step = TrainingStep(each, FactoredAdam(each.parameters(), step_in_backward=True))
        totals.append([step(x, y, 0).total.item() for _ in range(5)])
    assert compiler.status == "yes"
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)
