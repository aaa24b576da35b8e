"""What each of several processes runs as if torchrun had started it, and one for comparison."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from hypermask_fast.errors import Stopped
from hypermask_fast.files import checkpoint, divided_tensors
from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.hypernetworks.sharded import sharded_head
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.exssnet.learner import ExSSNeT
from hypermask_fast.methods.hnet.learner import HNET
from hypermask_fast.methods.hnet_r.learner import HNETR
from hypermask_fast.methods.hnet_tir.learner import HNETTIR
from hypermask_fast.methods.hyperinterval.learner import HyperInterval
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.methods.inputs import Given
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.methods.supsup.learner import SupSup
from hypermask_fast.methods.tasks import TaskId
from hypermask_fast.networks import MLP
from hypermask_fast.runs.script import Run
from hypermask_fast.scenarios import make_task
from hypermask_fast.scenarios.task import Task
from hypermask_fast.training.distributed import started
from hypermask_fast.training.distributed.processes import Processes, joined, joining
from hypermask_fast.training.trainer import Trainer
from tests.support.alternating import AlternatingLearner
from tests.support.replay_cases import HNET_SMALL, SMALL
from tests.support.started_group import Group, begun, preceded, signalled

BATCH, STEPS, CLASSES = 7, 3, 2  # of a batch that neither number divides

SHAPE = (1, 4, 4)
STOPS_AT = 3
"""The step of the first task in which a process is told to stop, or killed."""
SHORT = [
    *("--tasks", "2", "--steps", "6", "--mlp-hidden", "6", "--hidden", "4", "--embedding-dim", "3"),
    *("--capacity", "2", "--log-every", "1", "--checkpoint-every", "0", "--device", "cpu"),
]


class Conv(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.out = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.norm(self.conv(x))).flatten(1))


class Sometimes(MLP):
    """Has a layer for rows with a large number in a place, and one for none."""

    def __init__(self, outputs: int) -> None:
        super().__init__(16, (5,), outputs)
        self.rare = nn.Linear(outputs, outputs)
        self.never = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        rare = x.flatten(1)[:, :1] > 0.7
        return out + rare * self.rare(out) if rare.any() else out


class Regressed(Learner):
    """A plain network beside a hypernetwork whose head has factored gradients of its own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, capacity=4)
        self.hypernetwork = Hypernetwork(CLASSES, embedding_dim=3, hidden=(4,), capacity=4).double()

    def losses(
        self, x: Given, y: Any, task: TaskId, *, optimizer: Any = None, criterion: Any = None
    ) -> Losses:
        plain = super().losses(x, y, task, criterion=criterion)
        shift = self.hypernetwork.logits(torch.tensor([int(task)]))[0]
        loss = nn.functional.cross_entropy(plain.logits[:, :CLASSES] + shift, y)
        return Losses(plain.task + loss, plain.task, plain.logits, {"shifted": loss})


SHARED = [
    *("--tasks", "2", "--steps", "8", "--mlp-hidden", "12", "--hidden", "4", "--lr", "0.02"),
    *("--embedding-dim", "3", "--capacity", "2", "--log-every", "1"),
    *("--beta", "0.1", "--device", "cpu", "--shard-head"),
]
"""Of a run whose processes share its head."""
SAVES = 4
"""The checkpoint of a run in which a process is killed."""


def mlp(outputs: int = CLASSES) -> nn.Module:
    return MLP(16, (5,), outputs)


class Case(NamedTuple):
    learner: Callable[..., Learner]
    net: Callable[[], nn.Module] = mlp
    options: dict[str, Any] = {}  # noqa: RUF012
    training: dict[str, Any] = {}  # noqa: RUF012


_WIDE = partial(mlp, 2 * CLASSES)
_REPLAY = {"input_shape": SHAPE, "task_heads": "multi", **SMALL}
_GENERATED = {"embedding_dim": 3, "hidden": (6,), "capacity": 4}
_VALIDATED = {"selection": "best", "schedule": "plateau", "check_every": 2}
CASES = {
    "hypermask": Case(HyperMask, mlp, {**_GENERATED, "beta": 0.5, "lam": 1e-2}, _VALIDATED),
    "hypermask, norms of tasks": Case(
        HyperMask, partial(Conv, CLASSES), {**_GENERATED, "bn": "per_task"}
    ),
    "hypermask, sgd": Case(HyperMask, mlp, _GENERATED, {"optimizer": "sgd", "lr": 0.1}),
    "hnet": Case(HNET, mlp, {**_GENERATED, "beta": 0.5}),
    "hnet, no look-ahead": Case(HNET, mlp, {**_GENERATED, "lookahead": False, "beta": 0.5}),
    "hnet-tir": Case(HNETTIR, _WIDE, {**_REPLAY, **HNET_SMALL}),
    "hnet-r": Case(HNETR, _WIDE, _REPLAY),
    "hnet-r, growing, batch norm": Case(
        HNETR, partial(Conv, 2 * CLASSES), {**_REPLAY, "task_heads": "growing"}
    ),
    "hnet-r, batch norm": Case(HNETR, partial(Conv, 2 * CLASSES), _REPLAY),
    "supsup": Case(SupSup, partial(Conv, CLASSES)),
    "exssnet": Case(ExSSNeT, mlp, {"kkt": "knn_best", "kkt_share": 1.0, "kkt_batch": 8}),
    "hyperinterval": Case(HyperInterval, mlp, _GENERATED),
    "alternating": Case(AlternatingLearner),
    "plain, idle layers": Case(partial(Learner, capacity=4), partial(Sometimes, CLASSES)),
    "plain, batch norm": Case(partial(Learner, capacity=4), partial(Conv, CLASSES)),
    "factored gradient": Case(Regressed),
}


IN_FOUR = [
    *(
        "hypermask",
        "hypermask, norms of tasks",
        "hnet",
        "hnet-tir",
        "hnet-r, batch norm",
        "supsup",
        "exssnet",
    ),
    *("hyperinterval", "alternating"),
]


def tasks() -> list[Task]:
    made = []
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        x = torch.rand(45, *SHAPE, dtype=torch.float64, generator=generator)
        y = CLASSES * number + (x.flatten(1)[:, :8].sum(1) > 4).long()
        held_out = (x[30:38], y[30:38])
        made.append(
            make_task(f"t{number}", (x[:30], y[:30]), (x[38:], y[38:]), validation=held_out)
        )
    return made


class Found(NamedTuple):
    """What a process has after a case."""

    state: dict[str, Tensor]
    losses: list[list[float]]
    accuracy: Any


def trained(case: Case) -> Found:
    torch.manual_seed(3)
    learner = case.learner(case.net().double(), **case.options)
    options = {"steps": STEPS, "batch_size": BATCH, "lr": 1e-2, "eval_batch_size": 3}
    trainer = Trainer(learner, progress=False, **{**options, **case.training})
    losses: list[list[float]] = []

    def note(t: Trainer) -> None:
        assert t.losses is not None
        losses.append([float(value) for value in t.losses.scalars().values()])

    trainer.hooks.append(note)
    for task in tasks():
        trainer.fit(task)
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    return Found(state, losses, trainer.accuracy)


def drawn_apart(rank: int) -> list[float]:
    """A number of each process's dropout, and of its generator after the task."""
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, CLASSES)).double()
    seen: list[Tensor] = []
    net[1].register_forward_hook(lambda m, x, y: seen.append(y) if m.training else None)
    trainer = Trainer(Learner(net, 4), progress=False, steps=2, batch_size=8)
    torch.manual_seed(3 + rank)
    trainer.fit(tasks()[0])
    dropped = (seen[0] == 0).double().flatten()
    return [float(dropped @ torch.arange(len(dropped)).double()), float(torch.rand(()))]


def other_learner(rank: int) -> str:
    trainer = Trainer(Learner(MLP(16, (4 + rank,), CLASSES).double(), 4), progress=False, steps=1)
    try:
        trainer.fit(tasks()[0])
    except ValueError as error:
        return str(error)
    return ""


def _full_disk(rank: int) -> contextlib.AbstractContextManager[None]:
    """Let the disk of a process take no rows."""

    def before(*_: Any) -> None:
        if int(os.environ["RANK"]) == rank:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return preceded(FileSystemWriter, "write_data", before)


def _killed_while_saving(rank: int) -> contextlib.AbstractContextManager[None]:
    """Let a process be killed when it has written its rows of a checkpoint."""
    calls = count(1)

    def before(*_: Any) -> None:
        if int(os.environ["RANK"]) == rank and next(calls) == SAVES:
            os.kill(os.getpid(), signal.SIGKILL)

    return preceded(divided_tensors, "digest", before)


def script(folder: str) -> None:
    """Train two tasks with a head that processes share, where there are several."""
    torch.manual_seed(3)
    with sharded_head() if joined() else contextlib.nullcontext():
        learner = HyperMask(mlp().double(), **_GENERATED)
    with Run(folder, Trainer(learner, steps=STEPS + 3, batch_size=BATCH, progress=False)) as run:
        for task in tasks():
            run.fit(task)


def stopped_script() -> str:
    try:
        script("script")
    except Stopped as error:
        return str(error)
    return ""


def shared_head(group: Group) -> dict[str, Any]:
    """Runs whose processes share a head: what is printed of them."""
    results = {"shared": group.command(4, "train", *SHARED, "--out", "shared")}
    now_and_then = [*SHARED, "--checkpoint-every", "0.02", "--out", "now-and-then"]
    results["now and then"] = group.command(2, "train", *now_and_then)
    with signalled(STOPS_AT, 1, signal.SIGTERM):
        results["parts of 4"] = group.command(4, "train", *SHARED, "--out", "parts")
        results["parts of 2"] = group.command(2, "resume", "parts")
        group.command(2, "train", *SHARED, "--shard-head", "false", "--out", "later")
    if group.rank == 0:
        path = Path("later/config.toml")
        path.write_text(path.read_text().replace("shard_head = false", "shard_head = true"))
        shutil.copytree("parts", "damaged")
        victim = next(checkpoint.latest("damaged/checkpoints").glob("rows/__1_*"))
        victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    results["later"] = group.command(4, "resume", "later")
    with group.of(2) as takes_part:
        if takes_part:
            with started.data_parallel(), signalled(STOPS_AT, 0, signal.SIGTERM):
                results["script"] = stopped_script()
    with _full_disk(1):
        results["full"] = group.command(2, "train", *SHARED, "--out", "full")
    results["damaged"] = group.command(2, "resume", "damaged")
    return results


def process(rank: int, port: int, folder: str) -> None:
    group, results = begun(rank, port, folder), dict[str, Any]()
    with group.of(4), started.data_parallel() as processes:
        assert processes is not None
        results[4] = {name: trained(CASES[name]) for name in IN_FOUR}
        results["drawn"] = drawn_apart(rank)
        results["other"] = other_learner(rank)
        pair = dist.new_group([0, 1])
        if rank < 2:
            with joining(Processes(pair)):
                results[2] = {name: trained(case) for name, case in CASES.items()}
    results["whole"] = group.command(4, "train", *SHORT, "--out", "whole")
    results["again"] = group.command(4, "train", *SHORT, "--out", "whole")
    results["few rows"] = group.command(4, "train", *SHORT, "--batch-size", "3", "--out", "few")
    results["option"] = group.command(4, "train", "--stepz", "3")
    results["seeds"] = group.command(2, "train", *SHORT, "--seeds", "2", "--out", "seeds")
    results["plan"] = group.command(2, "plan", *SHORT)
    with signalled(STOPS_AT, 1, signal.SIGTERM):
        results["stopped"] = group.command(2, "train", *SHORT, "--out", "stopped")
    results["resumed"] = group.command(4, "resume", "stopped")
    results |= shared_head(group)
    torch.save(results, f"{rank}.pt")
    with signalled(STOPS_AT, 3, signal.SIGKILL):
        results["killed"] = group.command(4, "train", *SHORT, "--out", "killed")
    torch.save(results, f"{rank}.pt")


def lost_while_saving(rank: int, port: int, folder: str) -> None:
    """Lose the last one of three processes that share a head."""
    often = ("--checkpoint-every", "0")
    with _killed_while_saving(2):
        printed = begun(rank, port, folder).command(3, "train", *SHARED, *often, "--out", "lost")
    torch.save({"lost 2": printed}, f"lost-2-{rank}.pt")


def lost_in_a_step(rank: int, port: int, folder: str) -> None:
    """Lose the last one of two processes that go on with it."""
    with signalled(STOPS_AT, 1, signal.SIGKILL):
        printed = begun(rank, port, folder).command(2, "resume", "lost")
    torch.save({"lost 1": printed}, f"lost-1-{rank}.pt")


def accuracy_of(path: Path) -> Any:
    with np.load(path / "accuracy.npz") as found:
        return found["accuracy"]
