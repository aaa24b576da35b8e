"""The nouns of the passes over a head: what is read, what is written, what is kept."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hypermask_fast.head.adam import AdamOptions, AdamStep, adam_step


class Moments(NamedTuple):
    """Adam's running means of the gradient and of its square."""

    exp_avg: Tensor
    exp_avg_sq: Tensor


class Head(NamedTuple):
    """A linear head z = A h + b, and where they are updated, the moments of both.

    All tensors share one device and A's dtype, float32 or float64; moments may be bfloat16.

    Attributes:
        weight: A (N, H).
        bias: b (N,); None where a pass does not use it.
        moments, bias_moments: Of A and of b.
    """

    weight: Tensor
    bias: Tensor | None = None
    moments: Moments | None = None
    bias_moments: Moments | None = None


class KeptSample(NamedTuple):
    """Logits to keep of some embeddings of a larger batch.

    Attributes:
        logits: (k, N), the logits to keep.
        hidden: (m, H), the whole batch.
        rows: int64 (k + 1,), the places in it of the current embedding and of those of ``logits``.
    """

    logits: Tensor
    hidden: Tensor
    rows: Tensor


class KeptBoxes(NamedTuple):
    """What earlier boxes are to stay, of a head that is given boxes.

    Attributes:
        logits: (t, 2 N), their centers and radii, or (t, N), their centers alone; of A's dtype or
            bfloat16. None where t is 0.
        radii: Whether radii are kept.
    """

    logits: Tensor | None
    radii: bool


class FrozenHead(NamedTuple):
    """A head and the hidden rows of earlier tasks as a task found them.

    Attributes:
        weight, bias: A_old (N, H) and b_old (N,).
        hidden: (t, H), the trunk's outputs for the earlier tasks.
        gram: A_old^T A_old, float64 (H, H).
    """

    weight: Tensor
    bias: Tensor
    hidden: Tensor
    gram: Tensor


class KeptChunks(NamedTuple):
    """Logits to keep of a head that emits a task's logits in chunks.

    Attributes:
        logits: (t, M), the logits to keep, of A's dtype or bfloat16. Chunk k of a task has those
            from k N on; the last chunk may have fewer than N.
        chunks: K, the embeddings of each task, those of a task one after the other.
    """

    logits: Tensor
    chunks: int


Kept = Tensor | KeptSample | FrozenHead | KeptBoxes
"""What the output regularizer keeps the earlier embeddings' logits near: those logits (t, N), of
A's dtype or bfloat16, with the batch that they are sampled from, or what gave them."""


class HeadStep(NamedTuple):
    """An update of a head: gradients that are given, and those that the pass forms from residuals.

    Attributes:
        head: What is read, and with ``adam`` updated in place.
        dz: (r, N), the given gradients of the loss with respect to the logits of ``hidden[:r]``.
        hidden: (k, H), the trunk's outputs.
        kept: Of ``hidden[r:]``; None where r is k. In a step that looks ahead, or of a head in
            chunks, nothing is kept where a logit to keep is NaN.
        coefficient: Factor of a residual in its gradient: 2 beta / t^2 for the regularizer
            beta / t * mean_j ||r_j||^2; a number or a 0-d tensor.
        adam: The step that A and b take; None before an optimizer filled it in.
        bias_grad: (N,), to be filled with the gradient of b, which is left alone then and needs no
            moments.
        looks_ahead: Residuals and their hidden gradients are those of the head as the look-ahead of
            the given gradients makes it: :func:`hypermask_fast.head.ahead.shifted`. Default False.
    """

    head: Head
    dz: Tensor
    hidden: Tensor
    kept: Kept | KeptChunks | None = None
    coefficient: float | Tensor = 0.0
    adam: AdamOptions | None = None
    bias_grad: Tensor | None = None
    looks_ahead: bool = False

    @property
    def options(self) -> AdamOptions:
        """The step that A and b take."""
        assert self.adam is not None
        return self.adam

    def scalars(self) -> AdamStep:
        """Return what the update multiplies and adds."""
        return adam_step(self.options, self.head.weight.dtype)

    @property
    def taken_dz(self) -> Tensor:
        """The given gradients; zeros where the step is not to be taken, as 0 times NaN is NaN."""
        finite = self.options.finite
        return self.dz if finite is None else torch.where(finite, self.dz, 0.0)

    @property
    def kept_logits(self) -> Tensor | None:
        """The logits to keep, where they are kept as such."""
        kept = self.kept
        return kept.logits if isinstance(kept, (KeptSample, KeptChunks)) else _tensor(kept)

    @property
    def sample(self) -> KeptSample | None:
        """The sample, where the logits to keep are one."""
        return self.kept if isinstance(self.kept, KeptSample) else None


def _tensor(kept: Kept | KeptChunks | None) -> Tensor | None:
    return kept if isinstance(kept, Tensor) else None


class HeadGrads(NamedTuple):
    """What an update returns.

    Attributes:
        hidden: (k, H), the gradient to ``HeadStep.hidden``, with A as it was before the step. Of a
            step that looks ahead, 0 for the first r rows, and for the others with A as it looked.
        squares: 0-d float64, the sum of all squared residuals.
    """

    hidden: Tensor
    squares: Tensor


class HeadEngine(Protocol):
    """What does the passes: the modules cpu, cuda and tiles; of frozen, :meth:`step_rows`."""

    def logits(
        self, head: Head, hidden: Tensor, out: Tensor, sample: KeptSample | None = None
    ) -> None:
        """Write hidden A^T + b to ``out`` (k, N), with the bits of the batch of ``sample``."""

    def hidden_grad(self, weight: Tensor, dz: Tensor) -> Tensor:
        """Return dz A, (r, H)."""

    def adam_rows(self, step: HeadStep) -> None:
        """Apply an Adam step with the gradient dz^T hidden to A and its moments."""

    def step_rows(self, step: HeadStep) -> HeadGrads:
        """Form residuals and gradients, and apply an Adam step to A and b, in one pass."""
