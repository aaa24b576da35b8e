"""A launch that can be repeated, what is right, and the verdict on what it gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hypermask_fast.kernels.selfcheck.rounded import Rounded

Right = Rounded | Tensor
"""What a result has to be: near, or equal where it is integers or truth values."""


class Case(NamedTuple):
    """One launch of a kernel.

    Attributes:
        launch: Returns results, from inputs that each call finds as they were. It can be captured:
            it makes no tensor from numbers of the host.
        right: Returns what they have to be, by name, in the same order.
    """

    launch: Callable[[], Sequence[Tensor]]
    right: Callable[[], dict[str, Right]]


class Draw:
    """Makes the tensors of a case on a device, always the same.

    Args:
        device: Where the kernels run.
        seed: Of the numbers.
    """

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self.device = device
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(shape, generator=self._generator, device="cpu", dtype=torch.float32)
        return self.put(values, dtype)

    def number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=self.device)

    def put(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return values.to(self.device, values.dtype if dtype is None else dtype)

    def logits(self, *shape: int, threshold: float, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return logits whose masks no rounding moves across a threshold."""
        z = self.normal(*shape).cpu()
        near = (z.tanh().abs() - threshold).abs() < 0.05
        return self.put(torch.where(near, 3 * z, z), dtype)


def fault(found: Sequence[Tensor], right: dict[str, Right]) -> str | None:
    """Return what is wrong with results; None where rounding explains what they are off by."""
    for result, (name, expected) in zip(found, right.items(), strict=True):
        value = expected.value if isinstance(expected, Rounded) else expected.cpu()
        if result.shape != value.shape:
            return f"{name}: has the shape {tuple(result.shape)}, not {tuple(value.shape)}"
        mine = result.detach().cpu()
        if isinstance(expected, Tensor):
            wrong = int((mine != value).sum())
            if wrong:
                return f"{name}: {wrong} of {value.numel()} entries are wrong"
            continue
        info = torch.finfo(result.dtype)
        bound = expected.error + info.eps / 2 * expected.size + info.tiny
        away = (mine.double() - value).abs()
        # NaN is never within.
        beyond = ~(away <= bound)
        if beyond.any():
            worst = int((away / bound).nan_to_num(torch.inf).argmax())
            far, near = (float(t.flatten()[worst]) for t in (away, bound))
            return f"{name}: off by {far:.2g}, where rounding explains {near:.2g}"
    return None
