"""The hypernetwork with a full head: from a task embedding to a number for every target entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast import reference
from hypermask_fast.backends.compiled import CompiledModule, Compiler
from hypermask_fast.backends.precision import full_precision
from hypermask_fast.errors import shown
from hypermask_fast.fields import check_value
from hypermask_fast.head.frozen import freeze
from hypermask_fast.head.shard import RowShard
from hypermask_fast.head.types import FrozenHead, KeptSample
from hypermask_fast.hypernetworks import trunk
from hypermask_fast.hypernetworks.autograd import (
    HeadUpdate,
    head_logits,
    head_update,
    regularized,
    regularized_logits,
)
from hypermask_fast.modes import has_values
from hypermask_fast.optim.rows import mark_table, take_rows
from hypermask_fast.tables import add_rows

_ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": nn.ELU, "relu": nn.ReLU, "tanh": nn.Tanh}


def check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        check_value(name, int, size, low=1)


def _trunk(
    widths: Sequence[int],
    activation: str,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, width in pairwise(widths):
        layers += [nn.Linear(fan_in, width, device=device, dtype=dtype), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


class Hypernetwork(nn.Module):
    """Task embeddings, an MLP trunk, and a linear head that emits a logit for every mask entry.

    Embeddings are rows of one table, so a task id is a tensor and a new task changes no shape.
    Embeddings start as N(0, 1), layers as PyTorch's ``nn.Linear`` (HyperMask, as published).
    It computes in its own dtype, also under autocast: what is kept of earlier tasks is compared
    with what it emits later.

    Args:
        num_outputs: N, the number of mask entries.
        embedding_dim: Length of a task embedding.
        hidden: Widths of the trunk's layers; may be empty. Default (100,).
        capacity: Rows of the embedding table, which can grow. Default 128.
        activation: "elu" (default), "relu" or "tanh", after each hidden layer.
        device, dtype: As in ``nn.Linear``.

    Attributes:
        embedding_std: Standard deviation of the embeddings that :meth:`grow` adds. Default 1.
        trains_earlier: Whether embeddings of earlier tasks get gradients in a step. Default True.
        keeps_all: False: where logits to keep are NaN, nothing is kept, and :meth:`forward` takes
            no update. Default True.
        shard: The rows of the head that this process holds; None, the default: all.

    Raises:
        ConfigError: A size is below 1 or the activation is unknown.
    """

    trains_earlier: bool = True
    embedding_std: float = 1.0
    keeps_all: bool = True
    shard: RowShard | None = None
    _compiled_trunk: CompiledModule | None = None

    def __init__(
        self,
        num_outputs: int,
        *,
        embedding_dim: int,
        hidden: Sequence[int] = (100,),
        capacity: int = 128,
        activation: str = "elu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_outputs=num_outputs, embedding_dim=embedding_dim, capacity=capacity)
        hidden = check_value("hidden", tuple, hidden, low=1)
        check_value("activation", str, activation, choices=tuple(_ACTIVATIONS))
        self.num_outputs = num_outputs
        self.embeddings = nn.Parameter(
            torch.randn(capacity, embedding_dim, device=device, dtype=dtype)
        )
        widths = [embedding_dim + self._extra_inputs(), *hidden]
        self.trunk = _trunk(widths, activation, device, dtype)
        self.head = self._make_head(widths[-1], device, dtype)

    def _make_head(
        self, width: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> nn.Linear:
        return nn.Linear(width, self._head_outputs(), device=device, dtype=dtype)

    def _extra_inputs(self) -> int:
        return 0

    def _head_outputs(self) -> int:
        return self.num_outputs

    @property
    def chunks(self) -> int:
        """Passes of the trunk and head that a task's outputs take."""
        return -(-self.num_outputs // self.head.out_features)

    @property
    def own_outputs(self) -> int:
        """Entries of a task that this process keeps and forms: those of all, but of a shard."""
        return self.num_outputs

    def own_rows(self, whole: Tensor) -> Tensor:
        """Return the part of a tensor (N, ...) that belongs to the rows of this process."""
        return whole

    def draw_rows_(self, low: int, high: int, fill: Callable[[Tensor], object]) -> None:
        """Let a function fill rows of the head's matrix, ``low`` to ``high`` of N."""
        fill(self.head.weight[low:high])

    @property
    def capacity(self) -> int:
        """Rows of the embedding table."""
        return self.embeddings.shape[0]

    @torch.no_grad()
    def grow(self, capacity: int) -> None:
        """Add rows to the embedding table, as random as the first ones; drop its gradient.

        What they are follows from the present rows, so that they are the same in every process of
        a data-parallel run.

        Args:
            capacity: Rows from now on.

        Raises:
            ConfigError: It is no integer, or less than the present rows.
        """
        table = self.embeddings
        check_value("capacity", int, capacity, low=len(table))
        add_rows(table, self._new_rows(capacity - len(table)))

    def _new_rows(self, count: int) -> Tensor:
        table = self.embeddings
        bits = table.to(torch.float64).sum().view(torch.int64)
        generator = torch.Generator().manual_seed(int(bits))
        rows = torch.randn(count, table.shape[1], generator=generator).to(table)
        return rows if self.embedding_std == 1 else rows * self.embedding_std

    @torch.no_grad()
    def copy_row(self, source: int, task: int) -> None:
        """Give a task the embedding of another one."""
        self.embeddings[task] = self.embeddings[source]

    @torch.no_grad()
    def renew_row(self, task: int) -> None:
        """Give a task a new embedding, as :meth:`grow` does."""
        self.embeddings[task] = self._new_rows(1)[0]

    def compile_trunk(self, compiler: Compiler | None) -> None:
        """Compile the trunk once for one task and once for any larger number; None: no more."""
        self._compiled_trunk = None
        if compiler is not None:
            self._compiled_trunk = CompiledModule(self.trunk, compiler, dynamic_rows=True)

    def _check_ids(self, ids: Tensor) -> None:
        """Refuse what names no tasks.

        Raises:
            TypeError: The ids are no tensor of integers.
            ValueError: They have another shape, or one has no row.
        """
        wanted = f"give int64 (k,), ids from 0 to {len(self.embeddings) - 1}"
        if not isinstance(ids, Tensor):
            raise TypeError(f"ids are {shown(ids)}; {wanted}")
        if ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"ids are {ids.dtype}; {wanted}")
        if ids.is_meta != self.embeddings.is_meta:
            raise ValueError(f"ids are on {ids.device}; {wanted}, on {self.embeddings.device}")
        if ids.dim() != 1 or not len(ids):
            raise ValueError(f"ids have shape {tuple(ids.shape)}; {wanted}")
        if has_values(ids) and not 0 <= min(ids.tolist()) <= max(ids.tolist()) < self.capacity:
            raise ValueError(f"ids are {ids.tolist()}; {wanted}")

    def _embedded(self, ids: Tensor, trains: bool = True) -> Tensor:
        """Return the embeddings (k, embedding_dim) of tasks.

        Raises:
            TypeError, ValueError: As of :meth:`_check_ids`.
        """
        self._check_ids(ids)
        rows = take_rows(self.embeddings, ids)
        if not trains:
            return rows.detach()
        return rows if self.trains_earlier else torch.cat((rows[:1], rows[1:].detach()))

    def hidden(self, ids: Tensor, *, trains: bool = True) -> Tensor:
        """Return what the head reads for the tasks ``ids``, int64 (k,): (k * chunks, H).

        Args:
            ids: The tasks.
            trains: Whether the first one's embedding gets a gradient. Default True.
        """
        with full_precision(self.embeddings.device):
            return self._hidden(ids, trains)

    def _hidden(self, ids: Tensor, trains: bool = True) -> Tensor:
        if trains and self.trains_earlier and trunk.takes(self.trunk, self.embeddings, ids):
            self._check_ids(ids)
            if isinstance(self.embeddings, nn.Parameter):
                mark_table(self.embeddings)
            return trunk.hidden(self.trunk, self.embeddings, ids)
        if self._compiled_trunk is None or torch.is_inference_mode_enabled():
            return self.trunk(self._embedded(ids, trains))
        # Always with gradients, for targets of the same bits by the same code.
        with torch.enable_grad():
            hidden = self._compiled_trunk(self._embedded(ids, trains))
        return hidden if torch.is_grad_enabled() else hidden.detach()

    def _check_kept(self, kept: object, ids: Tensor) -> None:
        wanted = (len(ids) - 1, self.own_outputs)
        if not isinstance(kept, Tensor):
            raise TypeError(f"kept is {shown(kept)}; give logits {wanted}, a FrozenHead or None")
        if kept.shape != wanted:
            raise ValueError(
                f"kept has shape {tuple(kept.shape)}; give {wanted}, the logits of each earlier "
                "task in ids"
            )

    def logits(self, ids: Tensor) -> Tensor:
        """Return the mask logits (k, N) of the tasks ``ids``, int64 (k,).

        The gradient of a float32 or float64 head is a
        :class:`~hypermask_fast.optim.factored_grad.FactoredGrad`.
        """
        with full_precision(self.embeddings.device):
            return self._logits(ids)

    def _logits(self, ids: Tensor) -> Tensor:
        compute = head_logits if self.can_update else reference.mask_logits
        return compute(self.head.weight, self.head.bias, self._hidden(ids))

    @property
    def can_update(self) -> bool:
        """Whether the head can be updated in the backward pass: float32 or float64, not chunked."""
        return self.head.weight.dtype in (torch.float32, torch.float64)

    def head_update(self, optimizer: Optimizer | None) -> HeadUpdate | None:
        """Return the update in the backward pass that an optimizer asks for, if it does.

        Raises:
            RuntimeError: It does, and :attr:`can_update` is False.
        """
        update = head_update(self.head, self.trunk, optimizer)
        if update is not None and not self.can_update:
            raise RuntimeError(
                f"a {type(self).__name__} with a head of {self.head.weight.dtype} cannot be "
                "updated in the backward pass; use an optimizer without step_in_backward"
            )
        return update

    def forward(
        self,
        ids: Tensor,
        kept: Tensor | FrozenHead | None = None,
        rows: Tensor | None = None,
        update: HeadUpdate | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the current task's logits and the output regularizer, in one pass over the head.

        A residual is exactly 0 where nothing changed since what is kept was made by :meth:`kept`
        or :meth:`frozen` with the same ids.

        Args:
            ids: int64 (1 + t,), the current task, then the t earlier ones.
            kept: (t, N), the earlier tasks' logits to keep, of the head's dtype or bfloat16, or
                a frozen head; None where t = 0.
            rows: int64 (1 + k,), the places in ``ids`` of the current task, 0, and of the k tasks
                of ``kept``. Default: all.
            update: Updates the head in the backward pass, of :meth:`head_update`. Default: the
                backward pass leaves gradients.

        Returns:
            logits (N,), and the 0-d mean over the tasks of ``kept`` of ``||z_j - z_j*||^2``; 0
            where nothing is kept.
        """
        with full_precision(self.embeddings.device):
            return self._regularized_logits(ids, kept, rows, update)

    def _regularized_logits(
        self,
        ids: Tensor,
        kept: Tensor | FrozenHead | None,
        rows: Tensor | None,
        update: HeadUpdate | None,
    ) -> tuple[Tensor, Tensor]:
        is_frozen = isinstance(kept, FrozenHead)
        if kept is not None and not is_frozen:
            self._check_kept(kept, ids if rows is None else rows)
        if not self.keeps_all:
            assert update is None
            logits = self._logits(ids)
            logits = logits if rows is None else logits[rows]
            if isinstance(kept, Tensor):
                kept = torch.where(kept.isnan(), logits[1:].detach().to(kept.dtype), kept)
            assert not isinstance(kept, FrozenHead)
            return regularized(logits, kept)
        if not self.can_update or (update is None and rows is None and not is_frozen):
            assert not isinstance(kept, FrozenHead)
            logits = self._logits(ids)
            return regularized(logits if rows is None else logits[rows], kept)
        batch = self._hidden(ids)
        hidden = batch if rows is None else batch[rows]
        sample: KeptSample | None = None
        if rows is not None and isinstance(kept, Tensor):
            sample = KeptSample(kept, batch.detach(), rows)
        if update is not None:
            return update.logits(self.head, hidden, sample or kept)
        return regularized_logits(self.head.weight, self.head.bias, hidden, sample or kept)

    @torch.no_grad()
    def kept(self, ids: Tensor, dtype: torch.dtype | None = None) -> Tensor | None:
        """Return the logits (t, N) to keep of the earlier tasks in ``ids`` (1 + t,); None if none.

        Those of own rows, (t, n), where the head is divided among processes.

        The current task takes part, so that the sums are formed in the same order as in a step.

        Args:
            ids: int64 (1 + t,), the current task, then the t earlier ones.
            dtype: Of the logits to keep. Default: the head's.
        """
        if len(ids) == 1:
            return None
        with full_precision(self.embeddings.device):
            logits = self._logits(ids)[1:]
        return logits.to(dtype or logits.dtype, copy=True)

    @torch.no_grad()
    def frozen(self, ids: Tensor) -> FrozenHead | None:
        """Return the head as it is, to keep the earlier tasks in ``ids`` (1 + t,); None if none.

        Raises:
            RuntimeError: The head is chunked, or neither float32 nor float64.
        """
        if not self.can_update:
            raise RuntimeError(
                f"a {type(self).__name__} with a head of {self.head.weight.dtype} cannot be "
                "frozen; keep its logits by kept()"
            )
        with full_precision(self.embeddings.device):
            hidden = self._hidden(ids)[1:]
            return freeze(self.head.weight, self.head.bias, hidden) if len(hidden) else None

    def extra_repr(self) -> str:
        return f"num_outputs={self.num_outputs}, capacity={self.capacity}"
