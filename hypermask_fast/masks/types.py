"""What travels between the operations on masks: the mask of a layer, and those of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Mask(NamedTuple):
    """The mask of a layer, ``|tanh z|`` where that is not below a threshold.

    Attributes:
        weight: z of the weight, of its shape.
        bias: z of the bias, of its shape; None to use the bias unmasked.
        weight_threshold, bias_threshold: 0-d, of :func:`hypermask_fast.functional.mask_threshold`;
            None keeps every entry.
    """

    weight: Tensor
    bias: Tensor | None = None
    weight_threshold: Tensor | None = None
    bias_threshold: Tensor | None = None


class MaskedTensors(NamedTuple):
    """What :func:`hypermask_fast.masks.weights.mask_weights` returns.

    Attributes:
        products: ``theta_i * mask_i`` of every tensor; theta_i itself where it is not masked.
        masks: ``mask_i`` of every tensor; of those that are not masked ``|tanh z|``.
        drift: 0-d, the L1 drift; 0 without previous weights.
    """

    products: list[Tensor]
    masks: list[Tensor]
    drift: Tensor


class MaskRequest(NamedTuple):
    """What :func:`hypermask_fast.masks.weights.mask_weights` is asked for.

    Attributes:
        weights: The target tensors, in the order of the logits.
        logits: z (N,), those of all tensors.
        sparsity: Percent of each mask that is 0, a number or a 0-d tensor.
        masked: For each tensor whether its mask has a threshold and multiplies it.
        previous: The weights (N,) to measure the L1 drift from, or None.
        masked_drift: Multiply the drift by the masks, as in
            :func:`hypermask_fast.reference.l1_drift`. Default True.
    """

    weights: Sequence[Tensor]
    logits: Tensor
    sparsity: float | Tensor
    masked: Sequence[bool]
    previous: Tensor | None = None
    masked_drift: bool = True

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each tensor."""
        return [w.numel() for w in self.weights]

    def shaped(self, masks: Tensor, drift: Tensor, *products: Tensor) -> MaskedTensors:
        """Return what a pass over all tensors found.

        Args:
            masks: (N,), one after the other.
            drift: 0-d.
            *products: Of the tensors that are masked.
        """
        found = iter(products)
        return MaskedTensors(
            [next(found) if m else w for w, m in zip(self.weights, self.masked, strict=True)],
            [m.view(w.shape) for m, w in zip(masks.split(self.sizes), self.weights, strict=True)],
            drift,
        )
