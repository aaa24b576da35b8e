"""Training steps of HyperMask, each of a preset's setting at a number of earlier tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.steps.case import EXACT, VARIANTS, Engine, StepCase
from benchmarks.steps.engine import LR, SEED, Trained, make_ours
from hypermask_fast import backend, reference
from hypermask_fast.benching import hypnettorch
from hypermask_fast.benching.first_step import some_rows
from hypermask_fast.benching.plain import DenseHypernetwork
from hypermask_fast.benching.published import Published, published_of
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.networks import make_network
from hypermask_fast.training.step import TrainingStep

_LOSSES = ("total", "task", "output_reg", "weight_reg")


class _VitBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.out(q + k + v)
        return x + self.down(F.gelu(self.up(x)))


class _VitLayers(nn.Module):
    """The linear layers of ViT-B/16 on one token: its weights without its attention."""

    def __init__(self, width: int = 768, blocks: int = 12) -> None:
        super().__init__()
        self.patch = nn.Linear(width, width)
        self.blocks = nn.ModuleList(_VitBlock(width) for _ in range(blocks))
        self.classifier = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)


@dataclass(frozen=True)
class Case(StepCase):
    """A training step of HyperMask.

    Attributes:
        name: As on the command line.
        network: Name of :func:`hypermask_fast.networks.make_network`, or "vit-b16".
        options: Of the network.
        input_shape: Of one input.
        classes: Outputs.
        embedding_dim, hidden, sparsity, beta, lam, masked_l1: As in ``HyperMask``.
        batch: Rows of a batch.
        earlier: t, the number of earlier tasks.
    """

    name: str
    network: str
    options: tuple[tuple[str, object], ...]
    input_shape: tuple[int, ...]
    classes: int
    embedding_dim: int
    hidden: tuple[int, ...]
    sparsity: float
    beta: float
    lam: float
    masked_l1: bool
    batch: int
    earlier: int = 0

    variants: ClassVar = VARIANTS
    bytes_of: ClassVar = {
        **{"published": 24, "hypnettorch": 24, "eager": 28, EXACT: 40},
        **{"ours-fallback": 14, "ours-eager": 14, "ours": 14},
    }

    def make_network(self) -> nn.Module:
        """Build the target network."""
        if self.network == "vit-b16":
            return _VitLayers(**dict(self.options))  # type: ignore[arg-type]
        return make_network(self.network, self.input_shape, self.classes, **dict(self.options))

    def make_batch(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(SEED)
        x = torch.rand(self.batch, *self.input_shape, generator=generator)
        return x, torch.randint(self.classes, (self.batch,), generator=generator)

    def rows(self) -> int:
        """Return N, from the shapes alone."""
        with torch.device("meta"):
            return sum(
                p.numel()
                for m in self.make_network().modules()
                if not isinstance(m, nn.modules.batchnorm._BatchNorm)
                for p in m.parameters(recurse=False)
            )

    def parameters(self) -> int:
        """Return those of the head."""
        return self.rows() * (self.hidden[-1] + 1)

    def floor_bytes(self) -> int:
        """Return 28 bytes a head parameter, and 4 a target."""
        return 28 * self.parameters() + 4 * self.rows() * self.earlier

    def make_engine(self, variant: str, device: str = "cpu") -> Engine:
        # No kernel takes part in what a variant begins with.
        with backend("auto" if device == "cpu" else "reference"):
            learner = make_learner(self, device)
        learner.to(device, torch.float64 if variant == EXACT else None)
        if variant in ("published", EXACT, "hypnettorch"):
            algorithm = hypnettorch.Hypnettorch if variant == "hypnettorch" else Published
            plain = published_of(learner, algorithm)
            named = _named(learner) | {"embeddings": [*plain.embeddings]}
            trained = Trained(named, [plain.optimizer], _LOSSES, self._picked)
            engine = trained.engine(plain.step)
            if variant != EXACT:
                return engine
            return engine._replace(
                check=lambda x, y: trained.gradients(plain.losses(x.double(), y))
            )
        trained = Trained(_named(learner), [], _LOSSES, self._picked)
        if variant == "eager":
            learner.hypernetwork.__class__ = DenseHypernetwork
            optimizer = torch.optim.Adam(learner.parameters(), lr=LR)
            step = TrainingStep(learner, optimizer)
            trained = trained._replace(optimizers=[optimizer])
            return trained.engine(lambda x, y: step(x, y, self.earlier))
        return make_ours(learner, variant, self, device, trained)

    def _picked(self, name: str, p: Tensor) -> Tensor:
        """Return what is compared of a parameter: some rows, and every embedding that trains."""
        if name == "embeddings":
            return p.view(-1, self.embedding_dim)[: self.earlier + 1]
        return some_rows(name, p)


_PERMUTED = Case(
    "permuted-mnist",
    "mlp",
    (("hidden", (1000, 1000)),),
    (1024,),
    10,
    embedding_dim=24,
    hidden=(100, 100),
    sparsity=0.0,
    beta=5e-4,
    lam=1e-3,
    masked_l1=True,
    batch=128,
)
_SPLIT = replace(
    _PERMUTED,
    name="split-mnist",
    options=(("hidden", (400, 400)),),
    input_shape=(784,),
    classes=2,
    embedding_dim=128,
    hidden=(25, 25),
    sparsity=30.0,
    beta=1e-3,
)
_RESNET = Case(
    "resnet",
    "resnet",
    (("n", 3), ("k", 2)),
    (3, 32, 32),
    10,
    embedding_dim=48,
    hidden=(100,),
    sparsity=0.0,
    beta=0.01,
    lam=1.0,
    masked_l1=False,
    batch=32,
)
# Dropout, which acts only in a task's first step as published, would only blur the comparison.
_ZENKE = replace(
    _RESNET, name="zenkenet", network="zenkenet", options=(("dropout", False),), lam=0.01
)
_VIT = replace(_RESNET, name="vit-b16", network="vit-b16", options=(), input_shape=(768,))

_TINY_HEAD: dict[str, Any] = {"embedding_dim": 4, "batch": 4}
_TINY: dict[str, dict[str, Any]] = {
    "permuted-mnist": {"options": (("hidden", (12, 12)),), "input_shape": (16,), "hidden": (8, 8)},
    "split-mnist": {"options": (("hidden", (12, 12)),), "input_shape": (16,), "hidden": (8, 8)},
    "resnet": {"options": (("n", 1), ("k", 1)), "input_shape": (3, 8, 8), "hidden": (8,)},
    "zenkenet": {"hidden": (4,)},
    "vit-b16": {
        "options": (("width", 8), ("blocks", 1)),
        "input_shape": (8,),
        "hidden": (8,),
    },
}

_EARLIER = {
    "cpu": ((_PERMUTED, (0, 4, 9)), (_SPLIT, (0, 4)), (_RESNET, (0, 9)), (_ZENKE, (0, 9))),
    "gpu": (
        (_PERMUTED, (0, 4, 9, 99)),
        (_SPLIT, (0, 4)),
        (_RESNET, (0, 9)),
        (_ZENKE, (0, 9)),
        (_VIT, (0,)),
    ),
}


def tiny(case: Case) -> Case:
    """Return the case with its smallest network and head; its tasks and loss are the same."""
    changes = _TINY[case.name.rpartition("-t")[0]] | _TINY_HEAD
    return replace(case, **changes)


def find_cases(suite: str) -> list[Case]:
    """Return the cases of a suite, "cpu" or "gpu"."""
    return [
        replace(base, name=f"{base.name}-t{t}", earlier=t)
        for base, counts in _EARLIER[suite]
        for t in counts
    ]


def find_case(suite: str, name: str, size: str) -> Case:
    """Return the case of a name that there is."""
    (case,) = (case for case in find_cases(suite) if case.name == name)
    return tiny(case) if size == "tiny" else case


@torch.no_grad()
def make_learner(case: Case, device: str = "cpu") -> HyperMask:
    """Return a learner in the recorded state: float32, in its task after t others.

    The state is the same whatever computes the variant, if it is made on the same kind of device.

    Embeddings and target weights have moved a little since the task began, so that no residual and
    no drift is zero. Targets are rounded the same way whatever computes the variant's own.
    """
    torch.manual_seed(SEED)
    x, _ = case.make_batch()
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
