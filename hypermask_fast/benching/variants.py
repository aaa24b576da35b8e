"""The variants of a step: this package's, the published algorithm's, and the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from hypermask_fast.backends.choice import backend
from hypermask_fast.backends.compiled import Compiler
from hypermask_fast.benching.batch import OneBatch
from hypermask_fast.benching.first_step import Trained, some_rows
from hypermask_fast.benching.laps import Laps, first_phase, watch
from hypermask_fast.benching.names import (
    BACKWARD,
    HYPERNETWORK,
    HYPNETTORCH,
    OPTIMIZER,
    OURS,
    REGULARIZER,
    TORCH,
)
from hypermask_fast.benching.plain import make_dense, torch_optimizer, torch_optimizers
from hypermask_fast.benching.published import Published, published_of
from hypermask_fast.benching.start import Start
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.hnet.learner import HNET
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.training.graph import GraphedStep
from hypermask_fast.training.optimizers import make_optimizers
from hypermask_fast.training.step import TrainingStep

_CAPTURED_WITHIN = 12
_LOSSES = ("total", "task")
_PUBLISHED = (
    "the published algorithm in plain PyTorch: earlier tasks one by one, percentiles by a full "
    "sort, dense gradients, torch.optim"
)
_ORDINARY = (
    "this package's learner in an ordinary loop: backend 'reference', no native passes or "
    "kernels for masks, torch.optim"
)


@dataclass
class Variant:
    """A way to take the same step.

    Attributes:
        name: One of :mod:`hypermask_fast.benching.names`.
        what: What it is, for people.
        first: The phase that its step begins with.
        step: Takes a batch, tells of its phases, and returns losses.
        trained: What is compared of it.
        notes: Of phases, what is done elsewhere or is in them.
        fastest: Ends the timing of phases, and returns what takes a step in the fastest way, where
            that is another; None: it is not.
        status: Returns how the fastest steps are taken.
        within: Returns the context that steps are taken in.
    """

    name: str
    what: str
    first: str
    step: Callable[[Tensor, Tensor], Any]
    trained: Trained
    notes: Mapping[str, str] = field(default_factory=dict)
    fastest: Callable[[Tensor, Tensor], Callable[[], object]] | None = None
    status: Callable[[], dict[str, str]] = dict
    within: Callable[[], AbstractContextManager[None]] = nullcontext

    def take(self, x: Tensor, y: Tensor) -> Any:
        """Take a step; return its losses."""
        with self.within():
            return self.step(x, y)

    def first_step(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Take the first step; return what it did, in float64 on the CPU."""
        with self.within():
            found: dict[str, Tensor] = self.trained.stepped(self.step, x, y)
        return found


def _named(learner: Learner, parameters: Mapping[int, nn.Parameter]) -> dict[str, Any]:
    """Return the parameters of optimizers by name; the hypernetwork's parts come apart."""
    found: dict[str, list[nn.Parameter]] = {}
    left = dict(parameters)
    for name, p in learner.named_parameters():
        if left.pop(id(p), None) is not None:
            found[name.removeprefix("hypernetwork.")] = [p]
    return found | {f"others.{number}": [p] for number, p in enumerate(left.values())}


def _trained(learner: Learner, optimizers: Mapping[str, Optimizer], earlier: int) -> Trained:
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    named = _named(learner, {id(p): p for group in groups for p in group["params"]})
    return Trained(named, [*optimizers.values()], _LOSSES, partial(_picked, earlier))


def _picked(earlier: int, name: str, p: Tensor) -> Tensor:
    """Return what is compared of a parameter: some rows; of embeddings those that train."""
    if name == "embeddings":
        return p.reshape(-1, p.shape[-1])[: earlier + 1]
    return some_rows(name, p)


def _notes(learner: Learner, optimizers: Mapping[str, Optimizer], earlier: int) -> dict[str, str]:
    """Return where a learner's step does what has no phase of its own."""
    adams = [o for o in optimizers.values() if isinstance(o, FactoredAdam)]
    in_backward = any(adam.steps_in_backward for adam in adams)
    looks_ahead = steps_ahead = False
    if isinstance(learner, HNET):
        looks_ahead = learner.lookahead
        steps_ahead = looks_ahead and bool(adams) and learner._kept.form != "frozen_head"
    notes = {}
    if in_backward or steps_ahead:
        notes[OPTIMIZER] = "the head's in backward"
    if earlier and hasattr(learner, "hypernetwork"):
        notes[REGULARIZER] = f"in {BACKWARD if in_backward or looks_ahead else HYPERNETWORK}"
        if isinstance(learner, HyperMask) and learner.lam:
            notes[REGULARIZER] += " and masks"
    return notes


def ours(start: Start, laps: Laps) -> Variant:
    """Return this package's step, as ``Trainer`` takes it."""
    learner, settings = start.learner(), start.config.training
    optimizers = make_optimizers(learner, settings)
    what = "this package's step as Trainer takes it"
    made, hooks = _of_learner(OURS, what, start, laps, learner, optimizers)
    compiler = Compiler(settings.compile)
    graph = GraphedStep(settings.graph if settings.optimizer == "adam" else False)

    def fastest(x: Tensor, y: Tensor) -> Callable[[], object]:
        for hook in hooks:
            hook.remove()
        learner.compile_steps(compiler)
        graph.begin(TrainingStep(learner, optimizers), OneBatch(x, y), start.task)
        numbers = count()
        # Some ordinary steps come first, then one is captured.
        while graph.status.startswith("not yet") and (number := next(numbers)) < _CAPTURED_WITHIN:
            graph(number)
        return lambda: graph(next(numbers))

    if start.device.type == "cuda" or settings.compile is True:
        made.fastest = fastest
        made.status = lambda: {"graph": graph.status, "compile": compiler.status}
    return made


def _of_learner(
    name: str,
    what: str,
    start: Start,
    laps: Laps,
    learner: Learner,
    optimizers: Mapping[str, Optimizer],
) -> tuple[Variant, list[RemovableHandle]]:
    """Return a learner's step, and the hooks by which it tells of its phases."""
    step, task = TrainingStep(learner, optimizers), start.task
    made = Variant(
        name,
        what,
        first_phase(learner),
        lambda x, y: step(x, y, task, lambda: laps.enter(BACKWARD)),
        _trained(learner, optimizers, task),
        _notes(learner, optimizers, task),
    )
    return made, watch(learner, list(optimizers.values()), laps)


def ordinary(start: Start, laps: Laps, dtype: torch.dtype | None = None, why: str = "") -> Variant:
    """Return the learner's own step in an ordinary loop with PyTorch's optimizers.

    Args:
        start: Where it begins.
        laps: What is told of its phases.
        dtype: Of the learner and its inputs. Default: float32.
        why: Why it is not the published step, for people. Default: nothing is said.
    """
    with backend("reference"):
        learner = start.learner(dtype)
        make_dense(learner)
        optimizers = torch_optimizers(learner, start.config.training)
    what = f"{_ORDINARY} ({why})" if why else _ORDINARY
    made, _ = _of_learner(TORCH, what, start, laps, learner, optimizers)
    made.within = lambda: backend("reference")
    return made


def published(
    start: Start,
    laps: Laps,
    dtype: torch.dtype | None = None,
    algorithm: type[Published] = Published,
) -> Variant:
    """Return the published step of HyperMask.

    Args:
        start: Of a learner that :func:`why_not_published` has nothing against.
        laps: What is told of its phases.
        dtype: Of the parameters and inputs. Default: float32.
        algorithm: The class.
    """
    learner = start.learner(dtype)
    assert isinstance(learner, HyperMask)
    trains = [n for n, p in learner.net.named_parameters() if p.requires_grad]
    make_optimizer = partial(torch_optimizer, settings=start.config.training)
    plain = published_of(learner, algorithm, make_optimizer=make_optimizer)
    named = {f"net.{name}": [plain.net.get_parameter(name)] for name in trains}
    for prefix in ("trunk", "head"):
        layers = learner.hypernetwork.get_submodule(prefix)
        named |= {f"{prefix}.{name}": [p] for name, p in layers.named_parameters()}
    named["embeddings"] = list(plain.embeddings)
    trained = Trained(named, [plain.optimizer], _LOSSES, partial(_picked, start.task))
    name, what = TORCH, _PUBLISHED
    if algorithm is not Published:
        name = HYPNETTORCH
        what += "; hypernetwork and output regularizer are hypnettorch's"
    return Variant(name, what, HYPERNETWORK, lambda x, y: plain.step(x, y, laps.enter), trained)
