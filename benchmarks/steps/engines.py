"""The variants of a training step, made from the same recorded state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.steps import hypnettorch
from benchmarks.steps.cases import Case
from benchmarks.steps.published import Published, PublishedLosses
from hypermask_fast import backend, reference
from hypermask_fast.backends.compiled import Compiler
from hypermask_fast.conversion.convert import unconvert
from hypermask_fast.errors import ConfigError
from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.methods.protocol import Losses
from hypermask_fast.scenarios import BatchStream
from hypermask_fast.training import optimizers
from hypermask_fast.training.graph import CudaGraphs, GraphedStep
from hypermask_fast.training.settings import TrainingSettings
from hypermask_fast.training.step import TrainingStep

VARIANTS = ("published", "hypnettorch", "eager", "ours-fallback", "ours-eager", "ours")
SEED = 1
_CAPTURED_WITHIN = 12
_LR, _BETA1, _BETA2, _EPS = 1e-3, 0.9, 0.999, 1e-8


class _DenseHypernetwork(Hypernetwork):
    """A hypernetwork with an ordinary head, whose gradient is dense."""

    @property
    def can_update(self) -> bool:
        return False


class Engine(NamedTuple):
    """A variant, ready to step.

    Attributes:
        step: Takes a batch and returns its losses.
        optimizer: Of all parameters.
        named: Tensors of parameters to compare, by names that all variants share. The embeddings
            of the tasks are either rows of one or several.
        published: The plain algorithm itself, where the variant is that.
        status: Returns how steps are taken: whether compiled, and as a CUDA graph.
    """

    step: Callable[[Tensor, Tensor], Losses | PublishedLosses]
    optimizer: torch.optim.Optimizer
    named: dict[str, list[nn.Parameter]]
    published: Published | None = None
    status: Callable[[], dict[str, str]] = dict


class _Recorded(BatchStream):
    """The recorded batch, again and again, where it lies on the device."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._batch = x, y

    def prepare(self, step: int) -> None:
        """Do nothing: the batch is there."""

    def gather(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        return self._batch

    def batch(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        return self._batch


def make_batch(case: Case) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of the recorded batch."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.rand(case.batch, *case.input_shape, generator=generator)
    return x, torch.randint(case.classes, (case.batch,), generator=generator)


@torch.no_grad()
def make_learner(case: Case, device: str = "cpu") -> HyperMask:
    """Return a learner in the recorded state: float32, in its task after t others.

    The state is the same whatever computes the variant, if it is made on the same kind of device.

    Embeddings and target weights have moved a little since the task began, so that no residual and
    no drift is zero. Targets are rounded the same way whatever computes the variant's own.
    """
    torch.manual_seed(SEED)
    x, _ = make_batch(case)
    learner = HyperMask(
        case.make_network().to(device),
        embedding_dim=case.embedding_dim,
        hidden=case.hidden,
        sparsity=case.sparsity,
        beta=case.beta,
        lam=case.lam,
        masked_l1=case.masked_l1,
        bn="batch",
        example_input=x[:2].to(device),
    )
    while len(learner.tasks) <= case.earlier:
        learner.add_task()
    # Tasks that are begun and ended without a step; only the last needs what begin_task records.
    tensors, state = learner.task_state()
    learner.load_task_state(tensors, state | {"learned": list(range(case.earlier))})
    learner.begin_task(case.earlier)
    hypernetwork = learner.hypernetwork
    if case.earlier:
        targets = learner.task_state()[0]["targets"]
        hidden = hypernetwork.trunk(hypernetwork.embeddings[: case.earlier])
        for target, h in zip(targets, hidden, strict=True):
            head = hypernetwork.head
            target.copy_(reference.mask_logits(head.weight, head.bias, h[None])[0])
    for p in (hypernetwork.embeddings, *learner.net.parameters()):
        p.add_(torch.randn_like(p), alpha=0.1 if p is hypernetwork.embeddings else 1e-3)
    return learner


def make_published(
    learner: HyperMask, case: Case, algorithm: type[Published] = Published
) -> Engine:
    """Take a learner's state for the plain algorithm; the learner is void then."""
    tensors, _ = learner.task_state()
    entries = [entry for entry in learner.manifest() if entry["offset"] >= 0]
    net, hypernetwork = unconvert(learner.net), learner.hypernetwork
    weights = [net.get_parameter(entry["name"]) for entry in entries]
    parts: Sequence[Tensor] = weights
    if case.earlier:
        parts = tensors["previous"].split([w.numel() for w in weights])
    previous = {
        entry["name"]: part.view_as(weight)
        for entry, part, weight in zip(entries, parts, weights, strict=True)
    }
    embeddings = [nn.Parameter(e.clone()) for e in hypernetwork.embeddings[: case.earlier + 1]]
    linears = [m for m in hypernetwork.trunk if isinstance(m, nn.Linear)]
    engine = algorithm(
        net,
        [(m.weight, m.bias) for m in linears],
        (hypernetwork.head.weight, hypernetwork.head.bias),
        embeddings,
        list(tensors.get("targets", ())),
        previous,
        sparsity=case.sparsity,
        beta=case.beta,
        lam=case.lam,
        masked_l1=case.masked_l1,
        lr=_LR,
    )
    return Engine(
        engine.step, engine.optimizer, _named(learner) | {"embeddings": embeddings}, engine
    )


def _named(learner: HyperMask) -> dict[str, list[nn.Parameter]]:
    hypernetwork = learner.hypernetwork
    named = {"embeddings": [hypernetwork.embeddings]}
    for prefix, module in (
        ("net", learner.net),
        ("trunk", hypernetwork.trunk),
        ("head", hypernetwork.head),
    ):
        named |= {f"{prefix}.{name}": [p] for name, p in module.named_parameters()}
    return named


def make_engine(variant: str, case: Case, device: str = "cpu") -> Engine:
    """Build a variant in the recorded state; "float64" is the published one in double precision.

    Args:
        variant: One of :data:`VARIANTS`, or "float64". "ours" is as the trainer takes steps; on a
            GPU compiled, and as a CUDA graph, with "ours-eager" neither. "ours-fallback" is "ours"
            in a process with ``HYPERMASK_FAST_NATIVE=0``.
        case: The setting.
        device: "cpu" or "cuda".
    """
    # No kernel takes part in what a variant begins with.
    with backend("auto" if device == "cpu" else "reference"):
        learner = make_learner(case, device)
    learner.to(device, torch.float64 if variant == "float64" else None)
    if variant in ("published", "float64"):
        return make_published(learner, case)
    if variant == "hypnettorch":
        return make_published(learner, case, hypnettorch.Hypnettorch)
    optimizer: torch.optim.Optimizer
    if variant == "eager":
        learner.hypernetwork.__class__ = _DenseHypernetwork
        optimizer = torch.optim.Adam(learner.parameters(), lr=_LR)
    else:
        made = optimizers.make_optimizers(learner, TrainingSettings(lr=_LR))
        optimizer = made[optimizers.MAIN]
    step = TrainingStep(learner, optimizer)
    if variant == "ours" and device != "cpu":
        return _graphed(learner, step, case, device)
    return Engine(lambda x, y: step(x, y, case.earlier), optimizer, _named(learner))


def _graphed(
    learner: HyperMask, step: TrainingStep, case: Case, device: str, cuda: CudaGraphs | None = None
) -> Engine:
    """Return an engine whose first step is already a replay, from the recorded state.

    Args:
        learner, step, case, device: As elsewhere.
        cuda: Replaces CUDA in tests.
    """
    batch = [value.to(device) for value in make_batch(case)]
    recorded = [t.detach().to("cpu", copy=True) for t in _state(learner)]
    compiler = Compiler("auto")
    learner.compile_steps(compiler)
    graphed = GraphedStep(True, cuda=cuda)
    graphed.begin(step, _Recorded(*batch), case.earlier)
    numbers = count()
    # Some steps warm up, then one is captured and replayed.
    while graphed.status != "yes":
        number = next(numbers)
        if number == _CAPTURED_WITHIN:
            raise ConfigError(f"no graph was captured in {number} steps: {graphed.status}")
        graphed(number)
    with torch.no_grad():
        for tensor, value in zip(_state(learner), recorded, strict=True):
            tensor.copy_(value)
        for state in step.optimizers[optimizers.MAIN].state.values():
            for value in state.values():
                value.zero_()
    return Engine(
        lambda x, y: graphed(next(numbers)),
        step.optimizers[optimizers.MAIN],
        _named(learner),
        status=lambda: {"graph": graphed.status, "compile": compiler.status},
    )


def _state(learner: HyperMask) -> list[Tensor]:
    return [*learner.parameters(), *learner.buffers()]


def _rows(p: Tensor, case: Case, name: str) -> Tensor:
    """Return what is compared of a parameter: about 64 rows, and every embedding that trains."""
    if name == "embeddings":
        return p.view(-1, case.embedding_dim)[: case.earlier + 1]
    rows = p.reshape(len(p), -1)
    return rows[:: max(1, len(rows) // 64)]


def first_step(engine: Engine, case: Case, device: str = "cpu") -> dict[str, Tensor]:
    """Take the first step from the recorded state and return what it did, in float64.

    Gradients are read from Adam's first moment, which is (1 - beta1) g after one step, so that they
    are those the update used. There is one vector each of network, embeddings, trunk and head: a
    bias before a batch norm alone has no gradient but rounding. ``after`` and ``expected`` are the
    parameters as the step left them and as those moments imply.
    """
    x, y = (value.to(device) for value in make_batch(case))

    def compared(values: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {}
        for name, many in values.items():
            group = parts.setdefault(name.partition(".")[0], [])
            group += [_rows(v, case, name).flatten() for v in many]
        return {group: torch.cat(many).double().cpu() for group, many in parts.items()}

    params = {name: [p.detach() for p in many] for name, many in engine.named.items()}
    double = next(iter(params.values()))[0].dtype == torch.float64
    found: dict[str, Tensor] = {}
    if double and engine.published is not None:
        losses: Losses | PublishedLosses = engine.published.losses(x.double(), y)
        losses.total.backward()
        gradients = {name: [_grad(p) for p in many] for name, many in engine.named.items()}
        found = {f"gradient.{name}": g for name, g in compared(gradients).items()}
    else:
        before = compared(params)
        losses = engine.step(x, y)
        states = engine.optimizer.state
        first, second = (
            compared({n: [states[p][key] for p in many] for n, many in engine.named.items()})
            for key in ("exp_avg", "exp_avg_sq")
        )
        after = compared(params)
        for name in before:
            gradient = first[name] / (1 - _BETA1)
            found[f"gradient.{name}"] = gradient
            found[f"after.{name}"] = after[name]
            step = _LR * gradient / ((second[name] / (1 - _BETA2)).sqrt() + _EPS)
            found[f"expected.{name}"] = before[name] - step
    names = ("total", "task", "output_reg", "weight_reg")
    return found | {f"loss.{n}": getattr(losses, n).detach().double().cpu() for n in names}


def _grad(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Return relative errors (in root mean square) of :func:`first_step` against float64.

    Losses and gradients are compared with the float64 run's, updated parameters with what the
    variant's own moments imply: Adam's first step would blow up the rounding of small gradients.
    A NaN counts as infinite.
    """
    result = {}
    for name, value in found.items():
        if name.startswith("expected."):
            continue
        key = name.replace("after.", "expected.")
        truth = found[key] if key != name else exact[name]
        size = truth.norm()
        error = float((value - truth).norm() / size) if size else float(value.norm())
        result[name] = error if error == error else float("inf")
    return result
