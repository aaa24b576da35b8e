"""SupSup's training step and inference of the task, beside the published algorithm in PyTorch.

``python -m benchmarks.subnetworks [--threads N] [--seconds S]`` prints milliseconds, of processor
time on one thread. Published: a sort of every layer's scores in each step, dense masks of all tasks
for inference.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.inference.one_shot import entropy, one_shot
from hypermask_fast.masks.packed import unpack
from hypermask_fast.masks.top_k import dropped_count
from hypermask_fast.methods.supsup.learner import SupSup
from hypermask_fast.networks import FC1024, GEMResNet18, LeNet300_100
from hypermask_fast.training.optimizers import make_optimizers
from hypermask_fast.training.settings import TrainingSettings


class Case(NamedTuple):
    """A network, its batch and its masks."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    options: dict[str, Any]


CASES = (
    Case("lenet-top-k", lambda: LeNet300_100(10), (128, 784), {"density": 0.1}),
    Case("lenet-threshold", lambda: LeNet300_100(100), (128, 784), {"rule": "threshold"}),
    Case("fc1024-top-k", lambda: FC1024(784, 10), (128, 784), {"density": 0.1}),
    Case("gem-resnet18-top-k", lambda: GEMResNet18(5), (32, 3, 32, 32), {"density": 0.1}),
)


class _Sorted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, share: float) -> Tensor:
        mask = scores.clone()
        order = scores.flatten().sort().indices
        dropped = dropped_count(scores.numel(), share)
        flat = mask.flatten()
        flat[order[:dropped]], flat[order[dropped:]] = 0, 1
        return flat.view_as(scores)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Signed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        return (scores >= 0).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Published:
    """The plain algorithm over a network of which it shares the weights and scores."""

    def __init__(self, learner: SupSup) -> None:
        self.net = learner.net
        self.weights = {n: p.detach().clone() for n, p in learner.net.named_parameters()}
        parts = learner._shaped(learner.scores.detach().clone())
        self.scores = {n: nn.Parameter(s) for n, s in zip(self.weights, parts, strict=True)}
        self.share = None if learner.rule == "threshold" else learner._settings.density
        self.optimizer = torch.optim.Adam(self.scores.values())

    def mask(self, scores: Tensor) -> Tensor:
        return (
            _Signed.apply(scores) if self.share is None else _Sorted.apply(scores.abs(), self.share)
        )

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on a batch and return its loss."""
        self.optimizer.zero_grad()
        weights = {n: w * self.mask(self.scores[n]) for n, w in self.weights.items()}
        loss = F.cross_entropy(torch.func.functional_call(self.net, weights, (x,)), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def infer(self, x: Tensor, masks: dict[str, Tensor]) -> int:
        """Return the task of a batch by the gradient of the masks' factors.

        Args:
            x: Inputs.
            masks: For each weight those of all tasks, dense (tasks, ...).
        """
        count = len(next(iter(masks.values())))
        alpha = torch.full((count,), 1 / count, requires_grad=True)
        weights = {
            n: w * (alpha.view(-1, *[1] * w.dim()) * masks[n]).sum(0)
            for n, w in self.weights.items()
        }
        logits = torch.func.functional_call(self.net, weights, (x,))
        (grad,) = torch.autograd.grad(entropy(logits), alpha)
        return int(grad.argmin())


def paired_ms(
    first: Callable[[], object], second: Callable[[], object], seconds: float
) -> tuple[float, float]:
    """Return the lower quartiles of the milliseconds of two calls, made in turn.

    Of processor time on one thread, which others on the machine do not slow down as much.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    calls = first, second
    taken: tuple[list[float], list[float]] = ([], [])
    for call in calls:
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken[0]) < 5:
        for call, times in zip(calls, taken, strict=True):
            start = clock()
            call()
            times.append(1e3 * (clock() - start))
    low, other = (sorted(times)[len(times) // 4] for times in taken)
    return low, other


def measure(case: Case, tasks: int, seconds: float) -> list[tuple[str, float, float]]:
    """Return rows of a name, the published algorithm's milliseconds and ours."""
    torch.manual_seed(0)
    learner = SupSup(case.make(), **case.options)
    x = torch.randn(case.shape)
    outputs = learner.net(x).shape[1]
    y = torch.randint(outputs, (case.shape[0],))
    for task in range(tasks):
        learner.add_task()
        learner.begin_task(task)
        if task < tasks - 1:
            learner.end_task()
    plain = Published(learner)
    optimizers = make_optimizers(learner, TrainingSettings())
    losses = plain.step(x, y), learner.step(x, y, tasks - 1, optimizers).total
    torch.testing.assert_close(losses[0], losses[1])
    rows = [
        (
            f"{case.name}: step",
            *paired_ms(
                lambda: plain.step(x, y),
                lambda: learner.step(x, y, tasks - 1, optimizers),
                seconds,
            ),
        )
    ]
    learner.end_task()
    learner.eval()
    flat = torch.stack([unpack(bits, learner.bits.shape[1] * 8) for bits in learner.bits]).float()
    sizes = [w.numel() for w in plain.weights.values()]
    parts = flat[:, : sum(sizes)].split(sizes, 1)
    masks = {
        n: part.view(tasks, *w.shape)
        for (n, w), part in zip(plain.weights.items(), parts, strict=True)
    }
    if not learner.norms.tables:
        assert plain.infer(x, masks) == one_shot(learner, x).task
    rows.append(
        (
            f"{case.name}: task of {tasks}",
            *paired_ms(lambda: plain.infer(x, masks), lambda: one_shot(learner, x), seconds),
        )
    )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every case and print a line for each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--case", nargs="*", default=[case.name for case in CASES])
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    for case in CASES:
        if case.name in options.case:
            for name, published, ours in measure(case, options.tasks, options.seconds):
                print(f"{name:<36} {published:9.2f} {ours:9.2f} {published / ours:6.1f}")


if __name__ == "__main__":
    main()
