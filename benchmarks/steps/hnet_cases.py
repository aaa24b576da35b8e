"""Training steps of HNET, each of a preset's setting at a number of earlier tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.steps.case import EXACT, Engine, StepCase
from benchmarks.steps.engine import LR, Trained, make_ours
from benchmarks.steps.hnet import CASES, TINY, HNETCase, make_batch, make_learner, make_plain
from hypermask_fast.benching.first_step import some_rows
from hypermask_fast.methods.hnet.learner import HNET


class _Losses(NamedTuple):
    task: Tensor
    output_reg: Tensor


def _named(shared: Sequence[Any], embeddings: Any) -> dict[str, list[nn.Parameter]]:
    """Name the parameters: layers of the hypernetwork, the head last, and the chunks' embeddings.

    Args:
        shared: As :class:`benchmarks.steps.hnet.PlainHNET` has them.
        embeddings: The current task's, or a table with it.
    """
    *layers, chunks = shared if len(shared) % 2 else (*shared, None)
    named = {f"trunk.{number}": [p] for number, p in enumerate(layers[:-2])}
    named |= {"head.weight": [layers[-2]], "head.bias": [layers[-1]], "embeddings": [embeddings]}
    return named if chunks is None else named | {"chunks": [chunks]}


def _shared_of(learner: HNET) -> list[Any]:
    hypernetwork: Any = learner.hypernetwork
    layers = [m for m in (*hypernetwork.trunk, hypernetwork.head) if isinstance(m, nn.Linear)]
    chunks = getattr(hypernetwork, "chunk_embeddings", None)
    shared = [p for layer in layers for p in (layer.weight, layer.bias)]
    return shared if chunks is None else [*shared, chunks]


def _picked(row: int, name: str, p: Tensor) -> Tensor:
    if name != "embeddings":
        return some_rows(name, p)
    return p if p.dim() == 1 else p[row]


@dataclass(frozen=True)
class HNETStep(StepCase):
    """A training step of HNET.

    Attributes:
        name: As on the command line.
        case: The setting.
    """

    name: str
    case: HNETCase

    @property
    def earlier(self) -> int:  # type: ignore[override]
        return self.case.earlier

    def make_batch(self) -> tuple[Tensor, Tensor]:
        return make_batch(self.case)

    def parameters(self) -> int:
        case = self.case
        widths = (case.inputs, *case.hidden, case.classes * case.tasks)
        rows = sum((a + 1) * b for a, b in pairwise(widths))
        options = dict(case.options)
        width = options["hidden"][-1] + 1 if options.get("head") == "full" else 1
        return rows * (width + case.earlier)

    def make_engine(self, variant: str, device: str = "cpu") -> Engine:
        learner = make_learner(self.case).to(device, torch.float64 if variant == EXACT else None)
        picked = partial(_picked, self.earlier)
        if variant not in ("published", EXACT):
            named = _named(_shared_of(learner), learner.hypernetwork.embeddings)
            trained = Trained(named, [], _Losses._fields, picked)
            return make_ours(learner, variant, self, device, trained)
        plain = make_plain(learner, self.case, LR)
        named = _named(plain.shared, plain.embeddings[-1])
        trained = Trained(named, [plain.main, plain.embedding], _Losses._fields, picked)

        def step(x: Tensor, y: Tensor) -> _Losses:
            return _Losses(*plain.step(x.double() if variant == EXACT else x, y))

        return trained.engine(step)


def find_cases(size: str) -> list[HNETStep]:
    """Return the cases, "full" or "tiny"."""
    settings = TINY if size == "tiny" else CASES
    return [HNETStep(f"hnet-{name}", case) for name, case in settings.items()]
