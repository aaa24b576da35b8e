"""Learners, their methods, and conversion."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import hypermask_fast as hmf
from tests.malformed.operations import enter, nothing
from tests.malformed.subjects import Subject
from tests.malformed.values import (
    INPUTS,
    LABELS,
    LOADER,
    NOT_COUNTS,
    NOT_MODULES,
    NOT_NUMBERS,
    PERCENTS,
    ROWS,
    TASKS,
    X,
    Y,
    inf,
    nan,
)


def net() -> nn.Module:
    return hmf.networks.MLP(5, (4,), 3)


def construct(made: nn.Module, **arguments: Any) -> hmf.HyperMask:
    options: dict[str, Any] = {"net": made, "embedding_dim": 2, "hidden": (2,), "capacity": 3}
    return hmf.HyperMask(**{**options, **arguments})


def learner() -> hmf.HyperMask:
    made = construct(net())
    made.add_task()
    made.add_task("digits")
    return made


def traced() -> hmf.HyperMask:
    made = learner().eval()
    made(X, 0)
    return made


def learning() -> hmf.HyperMask:
    made = traced()
    made.begin_task(0)
    return made


def frozen() -> hmf.HyperMask:
    made = learning()
    made.end_task()
    made.freeze_masks()
    return made


def fresh_learning() -> hmf.HyperMask:
    made = learner()
    made.begin_task(0)
    return made


def optimizer() -> Any:
    return hmf.FactoredAdam([nn.Parameter(torch.ones(3))])


def on_learner(method: str) -> Any:
    return lambda it, **a: getattr(it, method)(**a)


WORDS: list[Any] = [3, None, True, ["elu"], "other"]
SETTINGS: dict[str, Any] = {
    "embedding_dim": NOT_COUNTS,
    "hidden": ["3", None, [0], [1.5], ["2"], 3, [True], object()],
    "activation": WORDS,
    "head": WORDS,
    "chunk_size": NOT_COUNTS,
    "init": WORDS,
    "capacity": NOT_COUNTS,
    "targets": WORDS,
    "regularized_tasks": ["3", 1.5, 0, -1, True, [3]],
    "sparsity": PERCENTS,
    "ramp": ["yes", 1, None, [True], torch.tensor(True)],
    "beta": [*NOT_NUMBERS, nan, inf, -0.1],
    "lam": [*NOT_NUMBERS, nan, inf, -0.1],
    "masked_l1": ["yes", 1, None],
    "train_target": ["yes", 0, None],
    "bn": WORDS,
    "dropout": WORDS,
    "settings": [3, "x", {}, hmf.HyperMask],
}


NOT_PATTERNS: list[Any] = [3, None, ["none"], "none", [3], [None], {"a": 1}.keys, nn.Conv2d, int]
NOT_PATTERNS += [nn.ReLU(), lambda name, part: part.shape]
PATTERNS = dict.fromkeys(("exclude", "shared", "per_task"), NOT_PATTERNS)


def _is_off(y: Any) -> bool:
    """Labels that only the outputs tell to be wrong: the network has run then, and is traced."""
    return isinstance(y, torch.Tensor) and y.dtype == torch.int64 and y.shape == Y.shape


SUBJECTS = [
    Subject(
        "HyperMask",
        net,
        construct,
        {},
        {
            **SETTINGS,
            "net": [*NOT_MODULES, nn.SyncBatchNorm(4), nn.ReLU()],
            **PATTERNS,
            "exempt": [3, "none", True, ["classifier.bias"], "hidden"],
            "example_input": ["x", 3, X.tolist(), X.numpy(), X[:, :4], X.double(), LOADER],
        },
    ),
    Subject("add_task", traced, on_learner("add_task"), {},
            {"name": [3, True, ["a"], "digits", "", b"a", 1.5],
             "classes": [3, "01", [], [1, 1], [0, 1.5], [True, False], [None], [0, -1], nan]}),
    Subject("copy_task", traced, on_learner("copy_task"), {"task": "digits"},
            {"task": [*TASKS, *ROWS], "name": [3, True, ["a"], "digits", "", b"a", 1.5],
             "classes": [3, "01", [], [1, 1], [0, 1.5]]}),
    Subject("rename_task", traced, on_learner("rename_task"), {"task": 0, "name": "a"},
            {"task": [*TASKS, *ROWS], "name": [3, None, True, ["a"], "digits", "", b"a"]}),
    Subject("remove_task", traced, on_learner("remove_task"), {"task": "digits"},
            {"task": [*TASKS, *ROWS, 0]}),
    Subject("net_for", traced, on_learner("net_for"), {"task": 0}, {"task": [*TASKS, *ROWS]}),
    Subject("regularization", learning, on_learner("regularization"), {"task": 0},
            {"task": [*TASKS, *ROWS, 1]}),
    Subject("class_dim", traced, lambda it, **a: setattr(it, "class_dim", a["dim"]), {"dim": 1},
            {"dim": ["1", 1.5, True, [1]]}),
    Subject("task_id", traced, on_learner("task_id"), {"task": "digits"},
            {"task": [*TASKS, *ROWS]}),
    Subject("begin_task", traced, on_learner("begin_task"), {"task": 0},
            {"task": [*TASKS, torch.tensor([0, 1])],
             "steps": ["3", None, 1.5, True, [3], -1, nan, torch.tensor(1.5)]}),
    Subject("begin_task_again", learning, on_learner("begin_task"), {},
            {"task": [0, 1]}, runs=False),
    Subject("end_task", traced, lambda it, **a: it.end_task(), {}, {"nothing": [None]}, runs=False),
    Subject("losses", learning, on_learner("losses"), {"x": X, "y": Y, "task": 0},
            {"x": INPUTS, "y": LABELS, "task": [*TASKS, *ROWS, 1],
             "x,y": [(X[:0], Y[:0]), (LOADER, None), ((X, Y), None), (X[:, :4], Y)],
             "criterion": ["mse", 3, [nn.MSELoss()], torch.ones(3)],
             "optimizer": ["adam", 3, hmf.FactoredAdam, torch.optim.SGD]}),
    Subject("losses_untraced", fresh_learning, on_learner("losses"), {"x": X, "y": Y, "task": 0},
            {"x": INPUTS, "y": [y for y in LABELS if y is not Y and not _is_off(y)]}),
    Subject("step", learning, on_learner("step"),
            {"x": X, "y": Y, "task": 0, "optimizers": {}},
            {"x": INPUTS[:9], "y": LABELS[:9], "task": TASKS[:9],
             "optimizers": [None, 3, "adam", [1], {"main": 3}, {"main": None}]}),
    Subject("forward", traced, lambda it, **a: it(**a), {"x": X, "task": 0},
            {"x": INPUTS, "task": [*TASKS, *ROWS]}),
    Subject("forward_rows", traced, lambda it, **a: it(**a), {"x": X, "task": Y % 2},
            {"x": INPUTS}),
    Subject("forward_untraced", learner, lambda it, **a: it(**a), {"x": X, "task": 0},
            {"x": INPUTS}),
    Subject("all_outputs", traced, on_learner("all_outputs"), {"x": X}, {"x": INPUTS}),
    Subject("features", traced, on_learner("features"), {"x": X, "task": 0},
            {"x": INPUTS, "task": [*TASKS, *ROWS]}),
    Subject("activated", traced, lambda it, **a: enter(it.activated(**a)), {"task": 0},
            {"task": [*TASKS, *ROWS],
             "weights": [3, "w", [1], {}, {"x": X}, {"net": None}, torch.ones(3)]}),
    Subject("task_weights", traced, on_learner("task_weights"), {"task": 0},
            {"task": [*TASKS, *ROWS], "sparsity": [*PERCENTS[:1], *PERCENTS[2:], torch.ones(2)]}),
    Subject("masks", traced, on_learner("masks"), {"task": 0},
            {"task": [*TASKS, *ROWS], "sparsity": [*PERCENTS[:1], *PERCENTS[2:], torch.ones(2)]}),
    Subject("task_weights.frozen", frozen, on_learner("task_weights"), {"task": 0},
            {"task": [*TASKS, *ROWS], "sparsity": [*PERCENTS[:1], *PERCENTS[2:], torch.ones(2)]}),
    Subject("masks.frozen", frozen, on_learner("masks"), {"task": 0},
            {"task": [*TASKS, *ROWS], "sparsity": [*PERCENTS[:1], *PERCENTS[2:], torch.ones(2)]}),
    Subject("begin_task.frozen", frozen, on_learner("begin_task"), {}, {"task": [0]}, runs=False),
    Subject("freeze_masks", learning, lambda it, **a: it.freeze_masks(), {}, {"nothing": [None]},
            runs=False),
    Subject("blended", traced, lambda it, **a: enter(it.blended(**a)), {"alpha": torch.ones(2)},
            {"alpha": [None, 3, "a", [0.5, 0.5], np.ones(2), torch.ones(3), torch.ones(2).long(),
                       torch.ones(2, 1), torch.tensor(1.0), torch.ones(2).to("meta")]}),
    Subject("load_task_state", traced, on_learner("load_task_state"),
            {"tensors": {}, "state": {}}, {"state": [None, 3, {}, [], "x"], "tensors": [None, 3]},
            runs=False),
    Subject("export_subnet", traced, lambda it, **a: hmf.export_subnet(**{"learner": it, **a}),
            {"task": 0}, {"task": [*TASKS, *ROWS], "learner": NOT_MODULES}),
    Subject("export_subnet.untraced", learner, lambda it, **a: hmf.export_subnet(it, 0), {},
            {"nothing": [None]}, runs=False),
    Subject("MultiTaskPredictor", traced,
            lambda it, **a: hmf.MultiTaskPredictor(**{"learner": it, **a}), {},
            {"learner": NOT_MODULES, "max_tasks": NOT_COUNTS}),
    Subject("MultiTaskPredictor.call", traced,
            lambda it, **a: hmf.MultiTaskPredictor(it)(**a), {"x": X, "task": 0},
            {"task": [*TASKS, *ROWS]}),
    Subject("conversion_report", net, lambda it, **a: hmf.conversion_report(**{"net": it, **a}),
            {}, {"net": NOT_MODULES, **PATTERNS}),
    Subject("unconvert", nothing, lambda _, net: hmf.unconvert(net),
            {"net": nn.Linear(5, 3)}, {"net": NOT_MODULES}),
    Subject("DistributedDataParallel", traced,
            lambda it, **a: hmf.DistributedDataParallel(**{"learner": it, **a}), {},
            {"learner": [*NOT_MODULES, nn.Linear(5, 3)]}, runs=False),
    Subject("sharded_head", nothing, lambda _, **a: enter(hmf.sharded_head(**a)), {},
            {"process_group": ["gloo", [0], 3, 1.5, nn.Linear(5, 3)]}, runs=False),
    Subject("FactoredAdam", optimizer,
            lambda it, **a: hmf.FactoredAdam([torch.ones(3, requires_grad=True)], **a), {},
            {"lr": ["fast", None, -1.0, nan, [0.1], 3j, True, torch.ones(2), object()],
             "betas": [0.9, None, (0.9,), (0.9, 1.0), (-0.1, 0.9), "ab", b"ab",
                       (0.9, "0.9"), (nan, 0.9)],
             "eps": ["x", None, -1.0, nan, [1]],
             "weight_decay": ["x", None, -1.0, nan, [1]],
             "foreach,fused": [(True, True)],
             "maximize": ["yes", 3, None],
             "capturable": ["yes", 3, None],
             "step_in_backward": ["yes", 3, None],
             "decoupled_weight_decay": ["yes", 3, None],
             "moments_dtype": [torch.float16, 3]}),
]  # fmt: skip
