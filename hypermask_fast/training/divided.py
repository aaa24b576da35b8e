"""Which tensors of a trainer's state have a row of the head each, so that processes divide them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.optim.optimizer import Optimizer

from hypermask_fast.head.frozen import gram_of
from hypermask_fast.head.shard import Place, RowShard
from hypermask_fast.hypernetworks.kept import KeptOutputs
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.generated import GeneratedLearner
from hypermask_fast.training.optimizers import prefix_of

DERIVED = ("task/frozen_gram",)
"""Names of tensors that :func:`derive` finds again, from as many rows as a process has."""

_PIECE = 16 * 2**20


@dataclass(frozen=True)
class Part:
    """A tensor, or the part of a larger one that a process has.

    Attributes:
        own: What this process has.
        dim: The dimension along which others have the rest; None: it is whole.
        first: Where ``own`` begins along it.
        size: Of the whole along it.
    """

    own: Tensor
    dim: int | None = None
    first: int = 0
    size: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the whole tensor."""
        shape = list(self.own.shape)
        if self.dim is not None:
            shape[self.dim] = self.size
        return tuple(shape)

    def pieces(self) -> list[tuple[tuple[int, ...], Tensor]]:
        """Return views of at most 16 MiB, where the tensor can be divided, and where they begin."""
        begin = [0] * self.own.dim()
        if self.dim is None:
            return [(tuple(begin), self.own)]
        rows = self.own.shape[self.dim]
        step = max(1, _PIECE * rows // max(1, self.own.nbytes))
        found = []
        for low in range(0, rows, step):
            begin[self.dim] = self.first + low
            found.append((tuple(begin), self.own.narrow(self.dim, low, min(step, rows - low))))
        return found


def divided_dims(
    learner: Learner,
    optimizers: Mapping[str, Optimizer],
    shapes: Mapping[str, Sequence[int]],
    rows: int,
) -> dict[str, int]:
    """Return the tensors of a state that processes may divide, with the dimension of the rows.

    Args:
        learner: The learner.
        optimizers: Its optimizers by name.
        shapes: Of the state's tensors, by name.
        rows: Of the head in them, those of this process.
    """
    if not isinstance(learner, GeneratedLearner):
        return {}
    if learner.settings is None or not learner.settings.divides_head:
        return {}
    found = {f"task/{name}": dim for name, dim in KeptOutputs.divided.items()}
    head = dict(learner.hypernetwork.head.named_parameters())
    for name in head:
        found |= {f"{part}/hypernetwork.head.{name}": 0 for part in ("learner", "best")}
    of_head = {id(p): (rows, *p.shape[1:]) for p in head.values()}
    for name, optimizer in optimizers.items():
        listed = [p for group in optimizer.param_groups for p in group["params"]]
        for index, p in enumerate(listed):
            begin = f"{prefix_of(name)}/{index}/"
            wanted = of_head.get(id(p))
            same = (n for n in shapes if n.startswith(begin) and tuple(shapes[n]) == wanted)
            found |= dict.fromkeys(same, 0)
    return {name: dim for name, dim in found.items() if name in shapes}


def divided_in(
    learner: Learner, optimizers: Mapping[str, Optimizer], tensors: Mapping[str, Tensor]
) -> dict[str, int]:
    """Return :func:`divided_dims` of the tensors of a state, which this process has."""
    shard = whole_shard(learner)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return divided_dims(learner, optimizers, shapes, 0 if shard is None else shard.rows)


def whole_shard(learner: Learner) -> RowShard | None:
    """Return the rows of a learner's head that this process has, be it all; None without any."""
    if not isinstance(learner, GeneratedLearner):
        return None
    hypernetwork = learner.hypernetwork
    return hypernetwork.shard or RowShard(hypernetwork.num_outputs, Place(0, 1))


def parts_of_state(
    tensors: Mapping[str, Tensor], dims: Mapping[str, int], shard: RowShard | None
) -> dict[str, Part]:
    """Return the tensors of a state as parts, but those that follow from others."""
    found = {}
    for name, value in tensors.items():
        if name in DERIVED:
            continue
        dim = dims.get(name) if shard is not None else None
        if dim is None:
            found[name] = Part(value.detach())
        else:
            assert shard is not None
            found[name] = Part(value.detach(), dim, shard.first, shard.size)
    return found


def derive(tensors: dict[str, Tensor]) -> None:
    """Add to the tensors of a state those that follow from others."""
    if "task/frozen_weight" in tensors:
        tensors["task/frozen_gram"] = gram_of(tensors["task/frozen_weight"])
