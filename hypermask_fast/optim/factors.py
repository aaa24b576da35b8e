"""Arithmetic of a matrix that is held as two factors, or dense where that is smaller."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from hypermask_fast.backends.precision import full_precision

# Elements of dz that the norm converts to float64 at a time: 32 MiB.
_NORM_BLOCK = 1 << 22


def dense_is_smaller(rank: int, rows: int, columns: int) -> bool:
    """Whether factors of this rank take at least the memory of the matrix (rows, columns)."""
    return rank * (rows + columns) >= rows * columns


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a is b or (
        a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
    )


class Factors:
    """What a gradient and its aliases share: the factors, or the dense tensor they became.

    Factors are replaced and never written to: others may hold the same tensors.
    """

    __slots__ = ("dense", "dz", "hidden")

    def __init__(self, dz: Tensor, hidden: Tensor, dense: Tensor | None = None) -> None:
        self.dz, self.hidden, self.dense = dz, hidden, dense

    def empty_factors(self) -> tuple[Tensor, Tensor]:
        return self.dz.new_empty(0, self.dz.shape[1]), self.hidden.new_empty(
            0, self.hidden.shape[1]
        )

    def become(self, dense: Tensor) -> Tensor:
        self.dz, self.hidden = self.empty_factors()
        self.dense = dense
        return dense

    def zero(self) -> None:
        self.dz, self.hidden = self.empty_factors()
        self.dense = None

    def copy(self) -> Factors:
        dense = None if self.dense is None else self.dense.clone()
        return Factors(self.dz.clone(), self.hidden.clone(), dense)

    def materialized(self) -> Tensor:
        """The dense tensor: the own one where there is one, else a new one."""
        if self.dense is not None:
            return self.dense
        with full_precision(self.dz.device):
            return self.dz.t() @ self.hidden

    def added_to(self, dense: Tensor, alpha: Any) -> None:
        if self.dense is not None:
            dense.add_(self.dense, alpha=alpha)
            return
        with full_precision(dense.device):
            dense.addmm_(self.dz.t(), self.hidden, alpha=alpha)

    def sum(self, other: Factors, alpha: Any) -> Factors:
        """The sum in fresh memory; dense where the factors would be larger."""
        if self.dense is None and other.dense is None:
            if _same_memory(self.hidden, other.hidden):
                return Factors(torch.add(self.dz, other.dz, alpha=alpha), self.hidden)
            rank = len(self.dz) + len(other.dz)
            if not dense_is_smaller(rank, self.dz.shape[1], self.hidden.shape[1]):
                scaled = other.dz if alpha == 1 else other.dz * alpha
                return Factors(torch.cat((self.dz, scaled)), torch.cat((self.hidden, other.hidden)))
        dense = self.materialized() if self.dense is None else self.dense.clone()
        other.added_to(dense, alpha)
        return Factors(*self.empty_factors(), dense)

    def norm(self) -> Tensor:
        """Float64: the root of sum_rs <dz_r, dz_s> <hidden_r, hidden_s>."""
        with full_precision(self.dz.device):
            h = self.hidden.double()
            gram = h.new_zeros(len(h), len(h))
            for block in self.dz.split(max(1, _NORM_BLOCK // max(1, len(h))), dim=1):
                block = block.double()
                gram.addmm_(block, block.t())
            # Where terms cancel, rounding can leave less than nothing.
            return (gram * (h @ h.t())).sum().clamp_min(0).sqrt()

    def finite_parts(self) -> tuple[Tensor, Tensor]:
        """Bool (N,) and (H,): an entry is finite where its row and its column are.

        A row counts as infinite also where its products might overflow.
        """
        largest = self.hidden.abs().nan_to_num(posinf=0.0).amax(1)
        with full_precision(self.dz.device):
            rows = self.dz.abs().t() @ largest <= torch.finfo(self.dz.dtype).max
        return rows, self.hidden.isfinite().all(0)


class FactoredTensor(Tensor):
    """A tensor of the shape of the matrix, without memory of its own: what holds :class:`Factors`.

    What operations on it do is :mod:`hypermask_fast.optim.factored_ops`.
    """

    _value: Factors

    @classmethod
    def _of(cls, value: Factors) -> Self:
        grad = Tensor._make_wrapper_subclass(
            cls,
            (value.dz.shape[1], value.hidden.shape[1]),
            dtype=value.dz.dtype,
            device=value.dz.device,
        )
        grad._value = value
        return grad

    @property
    def is_factored(self) -> bool:
        """Whether the factors are there; False after it became dense."""
        return self._value.dense is None

    def to_dense(
        self, dtype: torch.dtype | None = None, *, masked_grad: bool | None = None
    ) -> Tensor:
        """Return the gradient as a plain tensor (N, H) of its own."""
        value = self._value
        dense = value.materialized() if value.dense is None else value.dense.clone()
        return dense if dtype is None else dense.to(dtype)

    def all_finite(self) -> Tensor:
        """Return a 0-d bool tensor: whether every entry is finite; nothing is materialised."""
        if not self.is_factored:
            return self._value.materialized().isfinite().all()
        rows, columns = self._value.finite_parts()
        return rows.all() & columns.all()
