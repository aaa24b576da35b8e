"""Drop-in ``nn.Linear`` and ``nn.Conv2d`` whose weights can be masked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from hypermask_fast import functional


_MASK_STATE = ("active", "mask_source")


class MaskLogits(NamedTuple):
    """A mask that the layer's operation makes itself; see :func:`functional.masked_linear`."""

    weight: Tensor
    bias: Tensor | None = None
    weight_threshold: Tensor | None = None
    bias_threshold: Tensor | None = None


class MaskedWeights(NamedTuple):
    """Weights that were multiplied with their masks outside, in one pass over a network."""

    weight: Tensor
    bias: Tensor | None


class _Masked(nn.Module):
    """What the masked layers share. Without a mask they are the plain layer."""

    # Class attributes: a plain layer that is converted in place gets them without an __init__.
    plain: ClassVar[type[nn.Module]]
    active: MaskLogits | MaskedWeights | None = None
    mask_source: str = "none"

    weight: Tensor
    bias: Tensor | None

    def set_mask(
        self,
        weight_logits: Tensor,
        bias_logits: Tensor | None = None,
        *,
        sparsity: float = 0.0,
    ) -> None:
        """Mask the layer from now on with ``|tanh z|``, thresholded per tensor.

        Args:
            weight_logits: Of the weight's shape; gradients flow to it.
            bias_logits: Of the bias's shape, or None to leave the bias unmasked.
            sparsity: Percent of each tensor's entries to remove. Default 0.

        Raises:
            ValueError, TypeError: A shape, device, dtype or the sparsity does not fit.
        """
        thresholds = [
            None if z is None else functional.mask_threshold(z, sparsity)
            for z in (weight_logits, bias_logits)
        ]
        mask = MaskLogits(weight_logits, bias_logits, *thresholds)
        functional.check_mask(self.weight, self.bias, *mask)
        self.active = mask
        self.mask_source = f"logits(p={sparsity:g})"

    def clear_mask(self) -> None:
        """Return to the plain layer."""
        for name in _MASK_STATE:
            vars(self).pop(name, None)

    @contextmanager
    def masked(
        self, weight_logits: Tensor, bias_logits: Tensor | None = None, *, sparsity: float = 0.0
    ) -> Iterator[Self]:
        """Mask the layer inside a ``with`` block; see :meth:`set_mask`."""
        before = {name: vars(self)[name] for name in _MASK_STATE if name in vars(self)}
        self.set_mask(weight_logits, bias_logits, sparsity=sparsity)
        try:
            yield self
        finally:
            self.clear_mask()
            vars(self).update(before)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mask={self.mask_source}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Mask logits are mostly results of autograd, which cannot be copied: a copy has no mask.
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(
            {
                name: copy.deepcopy(value, memo)
                for name, value in self.__dict__.items()
                if name != "active"
            }
        )
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "active"}


def _converted(layer: nn.Module, cls: type, share: bool) -> Any:
    twin = copy.copy(layer) if share else copy.deepcopy(layer)
    if share:
        for name in ("_parameters", "_buffers", "_modules"):
            twin.__dict__[name] = dict(layer.__dict__[name])
    twin.__class__ = cls
    return twin


class MaskedLinear(_Masked, nn.Linear):
    """``nn.Linear`` with the same arguments and state_dict, and an optional mask.

    ``y = x (W * mask)^T + b * mask`` while a mask is set, else ``x W^T + b``. A learner such as
    :class:`hypermask_fast.HyperMask` sets the mask of the task at each forward; alone, use
    :meth:`set_mask` or :meth:`masked`.
    """

    plain = nn.Linear

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, share: bool = True) -> MaskedLinear:
        """Return a masked layer with the parameters, hooks, mode and dtype of ``linear``.

        Args:
            linear: The layer; it is not changed.
            share: Share its parameters (default), or copy them.

        Raises:
            TypeError: ``linear`` is not an ``nn.Linear``.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear is a {type(linear).__name__}; give an nn.Linear")
        return _converted(linear, cls, share)

    def to_linear(self, *, share: bool = True) -> nn.Linear:
        """Return an ``nn.Linear``: masked weights folded in while a mask is set, else the same.

        Args:
            share: Share the parameters where no mask is set (default), or copy them.
        """
        return _plain(self, share)

    def forward(self, x: Tensor) -> Tensor:
        mask = self.active
        if mask is None:
            return super().forward(x)
        if isinstance(mask, MaskedWeights):
            return nn.functional.linear(x, mask.weight, mask.bias)
        return functional.masked_linear(x, self.weight, self.bias, *mask)


class MaskedConv2d(_Masked, nn.Conv2d):
    """``nn.Conv2d`` with the same arguments and state_dict, and an optional mask.

    See :class:`MaskedLinear`. Every stride, padding, padding mode, dilation and group count of
    ``nn.Conv2d`` works.
    """

    plain = nn.Conv2d

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, *, share: bool = True) -> MaskedConv2d:
        """Return a masked layer with the parameters, hooks, mode and dtype of ``conv``.

        Args:
            conv: The layer; it is not changed.
            share: Share its parameters (default), or copy them.

        Raises:
            TypeError: ``conv`` is not an ``nn.Conv2d``.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"conv is a {type(conv).__name__}; give an nn.Conv2d")
        return _converted(conv, cls, share)

    def to_conv2d(self, *, share: bool = True) -> nn.Conv2d:
        """Return an ``nn.Conv2d``; see :meth:`MaskedLinear.to_linear`."""
        return _plain(self, share)

    def forward(self, x: Tensor) -> Tensor:
        mask = self.active
        if mask is None:
            return super().forward(x)
        if isinstance(mask, MaskedWeights):
            return self._conv_forward(x, mask.weight, mask.bias)
        padding = self.padding
        if self.padding_mode != "zeros":
            x = nn.functional.pad(x, self._reversed_padding_repeated_twice, self.padding_mode)
            padding = 0
        return functional.masked_conv2d(
            x, self.weight, self.bias, *mask, self.stride, padding, self.dilation, self.groups
        )


def _plain(layer: MaskedLinear | MaskedConv2d, share: bool) -> Any:
    twin = _converted(layer, layer.plain, share)
    mask = layer.active
    for name in _MASK_STATE:
        vars(twin).pop(name, None)
    if mask is None:
        return twin
    if isinstance(mask, MaskLogits):
        pairs = ((layer.weight, mask.weight, mask.weight_threshold),)
        if mask.bias is not None:
            pairs += ((layer.bias, mask.bias, mask.bias_threshold),)
        folded = [w * functional.reference.semi_binary_mask(z, q) for w, z, q in pairs]
        mask = MaskedWeights(folded[0], folded[1] if mask.bias is not None else layer.bias)
    for name, value in zip(("weight", "bias"), mask, strict=True):
        if value is not None:
            old = getattr(layer, name)
            setattr(twin, name, nn.Parameter(value.detach().clone(), old.requires_grad))
    return twin


__all__ = ["MaskLogits", "MaskedConv2d", "MaskedLinear", "MaskedWeights"]
