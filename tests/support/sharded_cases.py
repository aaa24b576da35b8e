"""What each of four processes that share a head runs, and one process for comparison."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hypermask_fast as hmf
from hypermask_fast.head import shard as shards
from hypermask_fast.hypernetworks.sharded import place_of
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.training import divided
from tests.support.distributed_cases import (
    Conv,
    as_floats,
    batch,
    error_of,
    factored,
    in_backward,
    mlp,
    torch_adam,
)

WORLD, STEPS, WIDTH = 4, 2, 20
IN_TWO = ("factored-adam", "same-batches", "frozen-head")
"""Cases that two processes run as well."""
Make = Callable[[HyperMask], torch.optim.Optimizer]


class Case(NamedTuple):
    optimizer: Make = factored
    net: Callable[[], nn.Module] = mlp
    options: Mapping[str, Any] = MappingProxyType({})
    tasks: int = 2
    splits: bool = True  # each process has its part of a batch
    dtype: torch.dtype = torch.float64
    rounds: bool = False  # batches are rounded to float32 and computed in float64
    broken: bool = False  # a step's gradient is not finite, because of one row of the batch


CASES = {
    "factored-adam": Case(),
    "torch-adam": Case(torch_adam, tasks=3, options={"regularized_tasks": 1}),
    "in-backward": Case(in_backward),
    "same-batches": Case(in_backward, Conv, {"bn": "per_task"}, splits=False),
    "frozen-head": Case(in_backward, options={"targets": "frozen_head", "init": "hyperfan"}),
    "frozen-head-factored": Case(options={"targets": "frozen_head", "mask_init": "open"}),
    "bfloat16-targets": Case(in_backward, options={"targets": "bfloat16"}),
    "not-finite": Case(in_backward, broken=True),
    "float32": Case(in_backward, dtype=torch.float32),
}


class Run(NamedTuple):
    """What a process has after a case.

    Attributes:
        state: Its tensors: own rows of the head and of moments, and all else.
        shown: What it sees of all tasks: masks and outputs.
        losses: Of every step, the terms.
    """

    state: dict[str, Tensor]
    shown: dict[str, Tensor]
    losses: list[list[float]]


def learner_of(case: Case, seed: int = 0) -> HyperMask:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"sparsity": 30.0, "beta": 0.5, "lam": 1e-2, **case.options}
    return HyperMask(
        case.net().to(case.dtype),
        embedding_dim=3,
        hidden=(WIDTH,),
        capacity=3,
        example_input=torch.zeros(2, 16, dtype=case.dtype),
        **options,
    )


def batch_of(case: Case, task: int, step: int) -> tuple[Tensor, Tensor]:
    x, y = batch(task, step)
    if case.broken and step == 1:
        x[-1, 0] = torch.inf
    x = x.to(case.dtype)
    return (x.double() if case.rounds else x), y


def states_of(learner: HyperMask, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return parameters, what is kept of earlier tasks, and moments, by name."""
    found = {f"learner/{name}": p for name, p in learner.named_parameters()}
    found |= {f"task/{name}": value for name, value in learner.task_state()[0].items()}
    for name, p in learner.named_parameters():
        found |= {f"{key}/{name}": v for key, v in optimizer.state.get(p, {}).items()}
    return {name: value.detach().clone() for name, value in found.items()}


def shown_of(learner: HyperMask, case: Case) -> dict[str, Tensor]:
    x, _ = batch_of(case, 9, 9)
    found: dict[str, Tensor] = {}
    learner.eval()
    with torch.no_grad():
        for task in range(case.tasks):
            found |= {f"{task}/{name}": mask for name, mask in learner.masks(task).items()}
            found[f"{task}/outputs"] = learner(x, task)
        found["all"] = learner.all_outputs(x)
    learner.train()
    return found


def run(case: Case, learner: HyperMask, ddp: Any = None) -> Run:
    losses = []
    for task in range(case.tasks):
        learner.add_task()
        learner.begin_task(task)
        optimizer = case.optimizer(learner)
        for step in range(STEPS):
            x, y = batch_of(case, task, step)
            if ddp is None:
                found = learner.losses(x, y, task, optimizer=optimizer)
            else:
                found = ddp(*ddp.shard(x, y), task, optimizer=optimizer)
            optimizer.zero_grad()
            found.total.backward()
            optimizer.step()
            losses.append(as_floats(found if ddp is None else ddp.mean(found)))
        if task == case.tasks - 1:
            state = states_of(learner, optimizer)
        learner.end_task()
    return Run(state, shown_of(learner, case), losses)


def in_processes(case: Case, group: Any) -> Run:
    with hmf.sharded_head(group):
        learner = learner_of(case)
    return run(case, learner, hmf.DistributedDataParallel(learner, group) if case.splits else None)


class Exchanged(list[tuple[str, int]]):
    """The collectives that were called, by the numbers that each sent to the others."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        gather, to_all = shards._gather, dist.all_to_all_single

        def gathered(out: Tensor, sent: Tensor, **options: Any) -> Any:
            self.append(("gather", sent.numel()))
            return gather(out, sent, **options)

        def divided_up(out: Tensor, sent: Tensor, **options: Any) -> Any:
            self.append(("to all", sent.numel()))
            return to_all(out, sent, **options)

        shards._gather, dist.all_to_all_single = gathered, divided_up
        try:
            yield
        finally:
            shards._gather, dist.all_to_all_single = gather, to_all


def exchanged() -> dict[str, list[tuple[str, int]]]:
    """Return what a step of the second task, and an evaluation, exchange."""
    case = Case(in_backward, splits=False)
    with hmf.sharded_head():
        learner = learner_of(case)
    run(case._replace(tasks=1), learner)
    learner.add_task()
    begun, stepped, seen = Exchanged(), Exchanged(), Exchanged()
    with begun.watched():
        learner.begin_task(1)
    optimizer = in_backward(learner)
    x, y = batch(1, 0)
    with stepped.watched():
        learner.step(x, y, 1, {"main": optimizer})
    with seen.watched(), torch.no_grad():
        learner(x, 1)
    return {"begin": list(begun), "step": list(stepped), "forward": list(seen)}


def means(rank: int) -> tuple[Tensor, Tensor]:
    """Return the means of own logits' gradients: of finite ones, and where one entry is not."""
    shard = shards.RowShard(11, place_of())
    grad = torch.arange(22.0, dtype=torch.float64).view(2, 11) * (rank + 1)
    mean = shard.mean_of_own(grad)
    if rank == 2:
        grad[1, 0] = torch.inf  # of a row of process 0
    return mean, shard.mean_of_own(grad)


class Largest(TorchDispatchMode):
    """The numbers of the largest tensor that was made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                size = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.numbers = max(self.numbers, size)
        return out


def largest(folder: Path) -> tuple[int, Tensor]:
    """Return the numbers of the largest tensor of a learner's life, and embeddings that grew."""
    case = Case(splits=False, options={"targets": "frozen_head"})
    with Largest() as mode:
        with hmf.sharded_head():
            learner = learner_of(case)
        run(case, learner)
        learner.add_task()
        learner.begin_task(2)
        optimizer = factored(learner)
        learner.step(*batch(2, 0), 2, {"main": optimizer})
        hmf.save_sharded(folder / "largest", learner, optimizer)
        hmf.load_sharded(folder / "largest", learner, optimizer)
        learner.end_task()
        learner.add_task()
    return mode.numbers, learner.hypernetwork.embeddings.detach()


RESHARDED = {
    "full": Case(in_backward, splits=False),
    "frozen": Case(splits=False, options={"targets": "frozen_head"}),
}


def begun(case: Case, shared: Any, group: Any = None) -> tuple[HyperMask, torch.optim.Optimizer]:
    """Return a learner within its second task, two steps in, and its optimizer."""
    with shared(group) if shared else nullcontext():
        learner = learner_of(case)
    run(case._replace(tasks=1), learner)
    learner.add_task()
    learner.begin_task(1)
    optimizer = case.optimizer(learner)
    for step in range(2):
        learner.step(*batch(1, step), 1, {"main": optimizer})
    return learner, optimizer


def loaded(case: Case, path: Path, shared: Any, group: Any = None) -> dict[str, Any]:
    """Return what a new learner has after it was loaded, and after two more steps."""
    with shared(group) if shared else nullcontext():
        learner = learner_of(case, seed=1)
    optimizer = case.optimizer(learner)
    hmf.load_sharded(path, learner, optimizer)
    before = states_of(learner, optimizer)
    losses = [as_floats(learner.step(*batch(1, step), 1, {"main": optimizer})) for step in (2, 3)]
    learner.end_task()
    after = {f"learner/{n}": p.detach().clone() for n, p in learner.named_parameters()}
    return {"before": before, "after": after, "losses": losses}


def resharded(rank: int, pair: Any, folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, case in RESHARDED.items():
        learner, optimizer = begun(case, hmf.sharded_head)
        path = folder / f"four-{name}"
        hmf.save_sharded(path, learner, optimizer)
        results[f"{name}/saved"] = states_of(learner, optimizer)
        results[f"{name}/4"] = loaded(case, path, hmf.sharded_head)
        if rank < 2:
            results[f"{name}/2"] = loaded(case, path, hmf.sharded_head, pair)
        if rank == 0:
            results[f"{name}/1"] = loaded(case, path, None)
            hmf.save_sharded(folder / f"one-{name}", *begun(case, None))
        dist.barrier()
        results[f"{name}/of one"] = loaded(case, folder / f"one-{name}", hmf.sharded_head)
    return results


def refused(rank: int, folder: Path) -> dict[str, tuple[str, str]]:
    """Return the errors of what goes wrong in one process or in all."""
    case = Case(splits=False)

    def of_another_seed() -> None:
        with hmf.sharded_head():
            learner_of(case, seed=rank // 3)

    with hmf.sharded_head():
        learner = learner_of(case)
    path, taken = folder / "refused", folder / "taken"
    hmf.save_sharded(path, learner)
    if rank == 0:
        taken.mkdir()
        (taken / "mine").write_text("mine")
    learner.add_task()
    other = {
        "seed": error_of(of_another_seed),
        "taken": error_of(lambda: hmf.save_sharded(taken, learner)),
        "file": error_of(lambda: hmf.save(learner, folder / "one.safetensors")),
        "missing": error_of(lambda: hmf.load_sharded(folder / "nowhere", learner)),
    }
    dist.barrier()
    if rank == 0:
        victim = next(path.glob("__2_*"))
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    dist.barrier()
    other["damaged"] = error_of(lambda: hmf.load_sharded(path, learner))
    if rank == 3:
        learner.add_task()
    other["tasks"] = error_of(lambda: hmf.DistributedDataParallel(learner))
    return other


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    shards._DRAWN = 7 * WIDTH
    divided._PIECE = 11 * WIDTH * 8
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD
    )
    pair = dist.new_group([0, 1])
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        results[f"4/{name}"] = in_processes(case, None)
        if rank < 2 and name in IN_TWO:
            results[f"2/{name}"] = in_processes(case, pair)
    results |= resharded(rank, pair, Path(folder))
    results["exchanged"] = exchanged()
    results["means"] = means(rank)
    results["largest"] = largest(Path(folder))
    results["refused"] = refused(rank, Path(folder))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
