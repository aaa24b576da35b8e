"""What each of two processes runs, and one process for comparison."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.hnet.learner import HNET
from hypermask_fast.methods.hyperinterval.learner import HyperInterval
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.methods.supsup.learner import SupSup
from hypermask_fast.networks import MLP
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.training.distributed.own_loop import DistributedDataParallel
from hypermask_fast.training.optimizers import make_optimizers
from hypermask_fast.training.settings import TrainingSettings
from hypermask_fast.training.step import TrainingStep
from tests.support.factored_grad_cases import pair
from tests.support.hypermask_cases import tables as tables_of

WORLD, BATCH, CLASSES, STEPS = 2, 8, 3, 3
WIDTH = 20  # H, so that the head's N * H is far from the 2N that may be exchanged


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.norm(self.conv(x.view(-1, 1, 4, 4)))).flatten(1))


class Repeated(Conv):
    """Runs its normalisation again in the backward pass, and counts in other ways by its seed."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.pace = torch.initial_seed()

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1 + self.pace  # a new tensor in each step
        return self.out(checkpoint(self.hidden, x, use_reentrant=False))

    def hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x.view(-1, 1, 4, 4)))).flatten(1)


class WithIdleLayer(MLP):
    def __init__(self) -> None:
        super().__init__(16, (5,), CLASSES)
        self.idle = nn.Linear(2, 2)


class Seen(nn.Module):
    """Keeps the last input's first value in a buffer, and what it kept before in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(()))
        self.before: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.before.append(float(self.last))
        self.last.copy_(x.flatten()[0])
        return x


def mlp() -> nn.Module:
    return MLP(16, (5,), CLASSES)


def factored(learner: HyperMask) -> torch.optim.Optimizer:
    return FactoredAdam(learner.parameters(), lr=1e-2)


def in_backward(learner: HyperMask) -> torch.optim.Optimizer:
    return FactoredAdam(learner.parameters(), lr=1e-2, step_in_backward=True)


def row_sparse(learner: HyperMask) -> torch.optim.Optimizer:
    tables = tables_of(learner)
    rest = [p for p in learner.parameters() if all(p is not table for table in tables)]
    return FactoredAdam([{"params": rest}, {"params": tables, "row_sparse": True}], lr=1e-2)


def torch_adam(learner: HyperMask) -> torch.optim.Optimizer:
    return torch.optim.Adam(learner.parameters(), lr=1e-2)


class Case(NamedTuple):
    optimizer: Callable[[HyperMask], torch.optim.Optimizer] = factored
    net: Callable[[], nn.Module] = mlp
    options: Mapping[str, Any] = MappingProxyType({})
    tasks: int = 2
    parts: int = 1


CASES = {
    "factored-adam": Case(),
    "torch-adam": Case(torch_adam),
    "update-in-backward": Case(in_backward),
    "gradients-of-two-batches": Case(parts=2),
    "chunked-head": Case(options={"head": "chunked", "chunk_size": 7, "chunk_embedding_dim": 2}),
    "target-does-not-train": Case(in_backward, options={"train_target": False}),
    "idle-layer": Case(in_backward, WithIdleLayer),
    "sampled-earlier-tasks": Case(options={"regularized_tasks": 1}, tasks=4),
    "norm-of-each-task": Case(row_sparse, Conv, {"bn": "per_task"}),
    "shared-norm": Case(torch_adam, Conv, {"bn": "batch"}),
    "repeated-norm": Case(torch_adam, Repeated, {"bn": "batch"}),
}
EXTRA = 30  # at most, elements that a step exchanges beside 2N: a flag for each parameter, norms


class Run(NamedTuple):
    """What a process has after a case."""

    state: dict[str, Tensor]
    losses: list[list[float]]  # total, task, output_reg, weight_reg of every step
    exchanged: list[int]  # elements of every tensor that the last step exchanged
    size: int  # N


def learner_of(case: Case, seed: int) -> HyperMask:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"sparsity": 30.0, "beta": 0.5, "lam": 1e-2, **case.options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the idle layer
        return HyperMask(
            case.net().double(),
            embedding_dim=3,
            hidden=(WIDTH,),
            capacity=5,
            example_input=torch.zeros(2, 16, dtype=torch.float64),
            **options,
        )


def batch(task: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * task + step)
    x = torch.randn(BATCH, 16, dtype=torch.float64, generator=generator)
    return x, torch.randint(CLASSES, (BATCH,), generator=generator)


def steps(case: Case, learner: HyperMask) -> Iterator[tuple[torch.optim.Optimizer, int, int]]:
    """Go through the life of all tasks, a step at a time; a task may have been begun before."""
    for task in range(case.tasks):
        if learner.current is None:
            learner.add_task()
            learner.begin_task(task)
        optimizer = case.optimizer(learner)
        for step in range(STEPS):
            yield optimizer, task, step
        learner.end_task()


def as_floats(losses: Losses) -> list[float]:
    return [float(value.detach()) for value in losses.scalars().values()]


def mean_of(losses: list[list[float]]) -> list[float]:
    return [sum(values) / len(losses) for values in zip(*losses, strict=True)]


def state_of(learner: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.state_dict().items()}


def in_two_processes(case: Case, rank: int) -> Run:
    learner = learner_of(case, rank)
    ddp = DistributedDataParallel(learner)
    losses, exchanged = [], []
    for optimizer, task, step in steps(case, learner):
        is_last = task + 1 == case.tasks and step + 1 == STEPS
        with torch.profiler.profile(record_shapes=True) if is_last else nullcontext() as profile:
            x, y = ddp.shard(*batch(task, step))
            optimizer.zero_grad()
            parts = []
            for part in zip(x.chunk(case.parts), y.chunk(case.parts), strict=True):
                parts.append(ddp(*part, task, optimizer=optimizer))
                (parts[-1].total / case.parts).backward()
            optimizer.step()
        if profile is not None:
            exchanged = [
                torch.Size(shape).numel()
                for event in profile.events()
                if event.name.startswith("gloo:")
                for shape in event.input_shapes
            ]
        losses.append(mean_of([as_floats(ddp.mean(part)) for part in parts]))
    return Run(state_of(learner), losses, exchanged, learner.hypernetwork.num_outputs)


def in_one_process(case: Case) -> Run:
    learner = learner_of(case, 0)
    losses = []
    for optimizer, task, step in steps(case, learner):
        losses.append(as_floats(TrainingStep(learner, optimizer)(*batch(task, step), task)))
    return Run(state_of(learner), losses, [], learner.hypernetwork.num_outputs)


METHODS: Mapping[str, Callable[[nn.Module], Learner]] = {
    "hnet": partial(HNET, embedding_dim=3, hidden=(6,), beta=0.5),
    "hyperinterval": partial(HyperInterval, embedding_dim=3, hidden=(6,)),
    "supsup": SupSup,
}


def of_method(name: str, seed: int, *, alone: bool) -> dict[str, Tensor]:
    """Take a learner's own steps, of the whole batch or of a process's part of it."""
    torch.manual_seed(seed)
    learner = METHODS[name](mlp().double())
    ddp = None if alone else DistributedDataParallel(learner)
    for task in range(2):
        learner.add_task()
        learner.begin_task(task, steps=STEPS)
        optimizers = make_optimizers(learner, TrainingSettings(lr=1e-2))
        for step in range(STEPS):
            x, y = batch(task, step)
            if ddp is None:
                learner.step(x, y, task, optimizers)
            else:
                ddp.step(*ddp.shard(x, y), task, optimizers)
        learner.end_task()
    return state_of(learner)


def begun_in_the_first_process_alone(rank: int) -> Run:
    case = CASES["factored-adam"]
    learner = learner_of(case, rank)
    if rank == 0:
        first_task_learned(learner)
    ddp = DistributedDataParallel(learner)
    optimizer = factored(learner)
    losses = [
        as_floats(ddp.mean(TrainingStep(ddp, optimizer)(*ddp.shard(*batch(1, step)), 1)))  # type: ignore[arg-type]
        for step in range(STEPS)
    ]
    return Run(state_of(learner), losses, [], learner.hypernetwork.num_outputs)


def first_task_learned(learner: HyperMask) -> None:
    learner.add_task("a", [0, 1, 2])
    learner.begin_task(0)
    TrainingStep(learner, factored(learner))(*batch(0, 0), 0)
    learner.end_task()
    learner.add_task("b")
    learner.begin_task(1)
    TrainingStep(learner, factored(learner))(*batch(0, 1), 1)


def error_of(call: Callable[[], object]) -> tuple[str, str]:
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def learner_alone(rank: int) -> bool:
    """Only one process trains without the wrapper: a hidden exchange would wait for the other."""
    learner = learner_of(CASES["factored-adam"], 0)
    DistributedDataParallel(learner)
    if rank == 0:
        learner.add_task()
        learner.begin_task(0)
        learner.losses(*batch(0, 0), 0).total.backward()
    return learner.hypernetwork.embeddings.grad is not None


def two_forwards_before_a_backward(rank: int) -> None:
    learner = learner_of(CASES["norm-of-each-task"], rank)
    ddp = DistributedDataParallel(learner)
    learner.add_task()
    learner.begin_task(0)
    (ddp(*batch(0, 0), 0).total + ddp(*batch(0, 1), 0).total).backward()


def buffers_before_forwards(rank: int) -> list[float]:
    seen = Seen()
    learner = learner_of(Case(net=lambda: nn.Sequential(seen, nn.Linear(16, CLASSES))), rank)
    ddp = DistributedDataParallel(learner)
    learner.add_task()
    learner.begin_task(0)
    seen.before.clear()
    for step in range(2):
        x, y = batch(0, step)
        ddp(torch.full_like(x, 10 * step + rank), y, 0).total.backward()
    return seen.before


def collectives_on_gradients(rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return by collective what a FactoredGrad and the dense tensor hold after it."""
    calls: dict[str, Callable[[Tensor], object]] = {
        "all_reduce": dist.all_reduce,
        "all_reduce-async": lambda g: dist.all_reduce(g, async_op=True).wait(),
        "broadcast": lambda g: dist.broadcast(g, 1),
        # Elsewhere than at its target a reduction leaves what it likes.
        "reduce": lambda g: (dist.reduce(g, 0), dist.broadcast(g, 0)),
        "all_reduce-alias": lambda g: dist.all_reduce(g.detach()),
    }
    results = {}
    for name, call in calls.items():
        grad, dense = pair(seed=rank)
        call(grad)
        call(dense)
        results[name] = grad.to_dense(), dense
    return results


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD
    )
    results: dict[str, Any] = {name: in_two_processes(case, rank) for name, case in CASES.items()}
    results |= {name: of_method(name, rank, alone=False) for name in METHODS}
    results["begun"] = begun_in_the_first_process_alone(rank)
    results["two"] = error_of(lambda: two_forwards_before_a_backward(rank))
    results["buffers"] = buffers_before_forwards(rank)
    results["collectives"] = collectives_on_gradients(rank)
    results["alone"] = learner_alone(rank)
    wide = Case(options={"head": "chunked", "chunk_size": 5 + rank})
    ddp = DistributedDataParallel(learner_of(Case(), rank))
    results["layout"] = error_of(lambda: DistributedDataParallel(learner_of(wide, rank)))
    results["rows"] = error_of(lambda: ddp.shard(torch.zeros(7, 2)))
    group = dist.new_group([0])
    results["group"] = error_of(lambda: DistributedDataParallel(learner_of(Case(), 0), group))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
