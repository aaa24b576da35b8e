"""``python -m benchmarks.inference RUN``: inference by entropy beside its published loops.

The published code of HNET makes a task's weights anew for each sample, in batches of one. That of
HyperMask runs batches of 2,000 and loops over samples and tasks for the entropies alone. Both are
written here in plain PyTorch; the first is timed on some samples, and takes as long for each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.steps.published import percentile
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import MLP
from hypermask_fast.runs import run

ROWS = 2000


def logits_of(learner: HyperMask, x: Tensor, task: int) -> Tensor:
    """Return the outputs (batch, outputs) of a task of a masked MLP, in plain PyTorch."""
    hypernetwork, net = learner.hypernetwork, learner.net
    assert isinstance(net, MLP)
    z = hypernetwork.trunk(hypernetwork.embeddings[task])
    z = F.linear(z, hypernetwork.head.weight, hypernetwork.head.bias)
    parameters = dict(net.named_parameters())
    weights: list[Tensor] = []
    offset = 0
    for name, parameter in parameters.items():
        part = z[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
        if name == learner.exempt:
            weights.append(parameter)
            continue
        mask = part.tanh().abs()
        weights.append(parameter * torch.where(mask >= percentile(mask, learner.sparsity), mask, 0))
    layers = list(pairwise(weights))[::2]
    hidden = x.flatten(1)
    for weight, bias in layers[:-1]:
        hidden = F.linear(hidden, weight, bias).relu()
    return F.linear(hidden, *layers[-1])


def entropy_of(logits: Tensor) -> Tensor:
    """Return the entropy of one row of logits, as published: without a guard against 0 log 0."""
    p = logits.softmax(0)
    return -(p * p.log()).sum()


@torch.no_grad()
def one_by_one(learner: HyperMask, x: Tensor) -> list[int]:
    """Return the tasks of inputs: one sample at a time, whose weights are made for it."""
    found = []
    for row in x.split(1):
        entropies = [
            float(entropy_of(logits_of(learner, row, task)[0])) for task in learner.learned
        ]
        found.append(min(range(len(entropies)), key=entropies.__getitem__))
    return found


@torch.no_grad()
def in_batches(learner: HyperMask, x: Tensor) -> list[int]:
    """Return the tasks of inputs: outputs in batches, entropies in a loop over both."""
    found = []
    for rows in x.split(ROWS):
        outputs = [logits_of(learner, rows, task) for task in learner.learned]
        for place in range(len(rows)):
            entropies = [float(entropy_of(each[place])) for each in outputs]
            found.append(min(range(len(entropies)), key=entropies.__getitem__))
    return found


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """Return the median of the CPU seconds that a call takes, which other processes change less."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def measure(learner: HyperMask, x: Tensor, some: int, repeats: int = 3) -> dict[str, float]:
    """Return CPU seconds for all inputs by each way, and the share of tasks that are the same.

    Args:
        learner: A masked MLP that has learned its tasks, in evaluation mode.
        x: Inputs.
        some: How many of them the loop in batches of one is timed on.
        repeats: Of which the median is taken.
    """
    ours = learner.predict(x).tasks
    theirs = torch.tensor(in_batches(learner, x))
    alone = torch.tensor(one_by_one(learner, x[:some]))
    return {
        "images": len(x),
        "same_as_in_batches": float((ours == theirs).double().mean()),
        "same_as_one_by_one": float((ours[:some] == alone).double().mean()),
        "predict_s": seconds_of(lambda: learner.predict(x), repeats),
        "in_batches_s": seconds_of(lambda: in_batches(learner, x), repeats),
        "one_by_one_s": seconds_of(lambda: one_by_one(learner, x[:some]), 1) * len(x) / some,
    }


def main() -> None:
    """Measure a run of HyperMask with an MLP on its test images, and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", help="of the data files [the run's]")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--some", type=int, default=200, help="for the loop in batches of one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trainer = run.load(args.run, device="cpu", data_dir=args.data_dir)
    learner = trainer.learner
    assert isinstance(learner, HyperMask)
    learner.eval()
    batches = [task.evaluation_batches("test") for task in trainer.tasks.values()]
    x = torch.cat([rows for each in batches for rows, _ in each])
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))][: args.images]
    print(json.dumps(measure(learner, x, args.some), indent=2))


if __name__ == "__main__":
    main()
