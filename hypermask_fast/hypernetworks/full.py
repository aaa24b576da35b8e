"""Hypernetworks: from a task embedding to the mask logits of every target tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hypermask_fast import reference
from hypermask_fast.backends.compiled import CompiledModule, Compiler
from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.head.tiles import SampledTargets
from hypermask_fast.hypernetworks.autograd import HeadUpdate, head_logits, head_update
from hypermask_fast.hypernetworks.frozen import FrozenHead, freeze, frozen_logits
from hypermask_fast.tables import add_rows

_ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": nn.ELU, "relu": nn.ReLU, "tanh": nn.Tanh}


class Target(NamedTuple):
    """What the hyperfan initialisation must know of a target tensor."""

    size: int
    fan_in: int
    is_bias: bool
    layer_has_bias: bool


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} is {size}; give at least 1")


def _trunk(
    widths: Sequence[int],
    activation: str,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Sequential:
    if activation not in _ACTIVATIONS:
        raise ConfigError(
            f"activation is {activation!r}{nearest(activation, _ACTIVATIONS)}; choose one of "
            f"{', '.join(_ACTIVATIONS)}"
        )
    layers: list[nn.Module] = []
    for fan_in, width in pairwise(widths):
        layers += [nn.Linear(fan_in, width, device=device, dtype=dtype), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def _regularized(logits: Tensor, targets: Tensor | FrozenHead | None) -> tuple[Tensor, Tensor]:
    if targets is None:
        return logits[0], logits.new_zeros(())
    assert isinstance(targets, Tensor)
    current, earlier = logits.split([1, len(targets)])
    return current[0], reference.output_regularizer(earlier, targets)


class Hypernetwork(nn.Module):
    """Task embeddings, an MLP trunk, and a linear head that emits a logit for every mask entry.

    Embeddings are rows of one table, so a task id is a tensor and a new task changes no shape.
    Embeddings start as N(0, 1), layers as PyTorch's ``nn.Linear`` (HyperMask, as published).

    Args:
        num_outputs: N, the number of mask entries.
        embedding_dim: Length of a task embedding.
        hidden: Widths of the trunk's layers; may be empty.
        capacity: Rows of the embedding table, which can grow. Default 128.
        activation: "elu" (default), "relu" or "tanh", after each hidden layer.
        device, dtype: As in ``nn.Linear``.

    Raises:
        ConfigError: A size is below 1 or the activation is unknown.
    """

    _update: HeadUpdate | None = None
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
        if isinstance(hidden, int):
            raise ConfigError(f"hidden is {hidden}; give a sequence of widths, such as ({hidden},)")
        _check_sizes(num_outputs=num_outputs, embedding_dim=embedding_dim, capacity=capacity)
        _check_sizes(**{f"hidden[{i}]": width for i, width in enumerate(hidden)})
        self.num_outputs = num_outputs
        self.embeddings = nn.Parameter(
            torch.randn(capacity, embedding_dim, device=device, dtype=dtype)
        )
        widths = [embedding_dim + self._extra_inputs(), *hidden]
        self.trunk = _trunk(widths, activation, device, dtype)
        self.head = nn.Linear(widths[-1], self._head_outputs(), device=device, dtype=dtype)

    def _extra_inputs(self) -> int:
        return 0

    def _head_outputs(self) -> int:
        return self.num_outputs

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
        """
        table = self.embeddings
        bits = table.to(torch.float64).sum().view(torch.int64)
        generator = torch.Generator().manual_seed(int(bits))
        rows = torch.randn(capacity - len(table), table.shape[1], generator=generator)
        add_rows(table, rows.to(table))

    def compile_trunk(self, compiler: Compiler | None) -> None:
        """Compile the trunk once for one task and once for any larger number; None: no more."""
        self._compiled_trunk = None
        if compiler is not None:
            self._compiled_trunk = CompiledModule(self.trunk, compiler, dynamic_rows=True)

    def _hidden(self, ids: Tensor) -> Tensor:
        if self._compiled_trunk is None or torch.is_inference_mode_enabled():
            return self.trunk(self.embeddings[ids])
        # Always with gradients, for targets of the same bits by the same code.
        with torch.enable_grad():
            hidden = self._compiled_trunk(self.embeddings[ids])
        return hidden if torch.is_grad_enabled() else hidden.detach()

    def logits(self, ids: Tensor) -> Tensor:
        """Return the mask logits (k, N) of the tasks ``ids``, int64 (k,).

        The gradient of a float32 or float64 head is a
        :class:`~hypermask_fast.optim.factored_grad.FactoredGrad`.
        """
        compute = head_logits if self.can_update else reference.mask_logits
        return compute(self.head.weight, self.head.bias, self._hidden(ids))

    @property
    def can_update(self) -> bool:
        """Whether the head can be updated in the backward pass: float32 or float64, not chunked."""
        return self.head.weight.dtype in (torch.float32, torch.float64)

    @contextmanager
    def updating(self, update: HeadUpdate | None = None) -> Iterator[HeadUpdate | None]:
        """Let the backward pass of a forward in a ``with`` block update the head.

        Args:
            update: Does it. Default: that of an outer block, else what the head's optimizer asks
                for; without one nothing is updated.

        Returns:
            What does it, or None.

        Raises:
            RuntimeError: :attr:`can_update` is False.
        """
        before = self._update
        update = update or before or head_update(self.head)
        if update is not None and not self.can_update:
            raise RuntimeError(
                f"a {type(self).__name__} with a head of {self.head.weight.dtype} cannot be "
                "updated in the backward pass; use an optimizer without step_in_backward"
            )
        self._update = update
        try:
            yield update
        finally:
            self._update = before

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | FrozenHead | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the current task's logits and the output regulariser, in one pass over the head.

        A residual is exactly 0 where nothing changed since the targets were made by
        :meth:`targets` or :meth:`frozen` with the same ids.

        Args:
            ids: int64 (1 + t,), the current task, then the t earlier ones.
            targets: (t, N), the earlier tasks' logits to keep, of the head's dtype or bfloat16, or
                a frozen head; None where t = 0.
            rows: int64 (1 + k,), the places in ``ids`` of the current task, 0, and of the k tasks
                of ``targets``. Default: all.

        Returns:
            logits (N,), and the 0-d mean over the tasks of ``targets`` of ``||z_j - z_j*||^2``; 0
            where there are no targets.
        """
        frozen = targets if isinstance(targets, FrozenHead) else None
        if not self.can_update or (self._update is None and rows is None and frozen is None):
            logits = self.logits(ids)
            return _regularized(logits if rows is None else logits[rows], targets)
        batch = self._hidden(ids)
        hidden = batch if rows is None else batch[rows]
        sampled: SampledTargets | None = None
        if rows is not None and isinstance(targets, Tensor):
            sampled = SampledTargets(targets, batch.detach(), rows)
        if self._update is not None:
            return self._update.logits(self.head, hidden, sampled or targets)
        if frozen is not None:
            return frozen_logits(self.head.weight, self.head.bias, hidden, frozen)
        logits = head_logits(self.head.weight, self.head.bias, hidden, sampled)
        return _regularized(logits, targets)

    @torch.no_grad()
    def targets(self, ids: Tensor, dtype: torch.dtype | None = None) -> Tensor | None:
        """Return the logits (t, N) to keep of the earlier tasks in ``ids`` (1 + t,); None if none.

        The current task takes part, so that the sums are formed in the same order as in a step.

        Args:
            ids: int64 (1 + t,), the current task, then the t earlier ones.
            dtype: Of the logits to keep. Default: the head's.
        """
        if len(ids) == 1:
            return None
        logits = self.logits(ids)[1:]
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
                "frozen; keep its logits by targets()"
            )
        hidden = self._hidden(ids)[1:]
        return freeze(self.head.weight, self.head.bias, hidden) if len(hidden) else None

    @torch.no_grad()
    def hyperfan_(self, targets: Sequence[Target]) -> None:
        """Initialise in place with hyperfan-in (Chang et al. 2020): the logits get a fan-in scale.

        The rows of a weight are uniform with variance ``2 / (c m d)``, those of a bias with
        ``1 / m``, where m is the width of the last hidden layer, d the target's fan-in and c is 2
        in a layer with a bias, else 1. The trunk is Kaiming-uniform, biases are 0.

        Args:
            targets: The target tensors in the order of the outputs.
        """
        for layer in self.trunk:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.head.bias)
        width = self.head.in_features
        sizes = [target.size for target in targets]
        for rows, target in zip(self.head.weight.split(sizes), targets, strict=True):
            variance = 1 / width
            if not target.is_bias:
                variance *= (1 if target.layer_has_bias else 2) / target.fan_in
            bound = math.sqrt(3 * variance)
            rows.uniform_(-bound, bound)

    def extra_repr(self) -> str:
        return f"num_outputs={self.num_outputs}, capacity={self.capacity}"


class ChunkedHypernetwork(Hypernetwork):
    """A hypernetwork that emits the logits in chunks (von Oswald et al. 2020).

    The input is the task embedding followed by a chunk embedding; ceil(N / chunk_size) passes are
    concatenated and the surplus of the last is cut off. Chunk embeddings start as N(0, 1).

    Args:
        num_outputs: N, the number of mask entries.
        chunk_size: Outputs of a pass.
        chunk_embedding_dim: Length of a chunk embedding.
        embedding_dim, hidden, capacity, activation, device, dtype: As in :class:`Hypernetwork`.

    Raises:
        ConfigError: A size is below 1 or the activation is unknown.
    """

    def __init__(
        self,
        num_outputs: int,
        *,
        embedding_dim: int,
        chunk_size: int,
        chunk_embedding_dim: int,
        hidden: Sequence[int] = (100,),
        capacity: int = 128,
        activation: str = "elu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_sizes(chunk_size=chunk_size, chunk_embedding_dim=chunk_embedding_dim)
        self._chunk_size, self._chunk_embedding_dim = chunk_size, chunk_embedding_dim
        super().__init__(
            num_outputs,
            embedding_dim=embedding_dim,
            hidden=hidden,
            capacity=capacity,
            activation=activation,
            device=device,
            dtype=dtype,
        )
        chunks = -(-num_outputs // chunk_size)
        self.chunk_embeddings = nn.Parameter(
            torch.randn(chunks, chunk_embedding_dim, device=device, dtype=dtype)
        )

    def _extra_inputs(self) -> int:
        return self._chunk_embedding_dim

    def _head_outputs(self) -> int:
        return self._chunk_size

    @property
    def can_update(self) -> bool:
        return False

    def logits(self, ids: Tensor) -> Tensor:
        tasks, chunks = self.embeddings[ids], self.chunk_embeddings
        shape = (len(tasks), len(chunks), -1)
        inputs = torch.cat((tasks[:, None].expand(shape), chunks[None].expand(shape)), dim=-1)
        return self.head(self.trunk(inputs)).flatten(1)[:, : self.num_outputs]

    def hyperfan_(self, targets: Sequence[Target]) -> None:
        raise ConfigError(
            "init 'hyperfan' needs a head with a row for each target entry and this one is "
            "chunked; use head='full' or init='default'"
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, chunks={len(self.chunk_embeddings)}x{self._chunk_size}"
