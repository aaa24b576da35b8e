"""Drop-in ``nn.Linear`` and ``nn.Conv2d`` whose weights can be masked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from hypermask_fast import reference
from hypermask_fast.layers import functional, tasks
from hypermask_fast.layers.intervals import IntervalWeights
from hypermask_fast.layers.own import readable
from hypermask_fast.layers.stand_ins import Forward, TaskLayer
from hypermask_fast.layers.tasks import TaskMasks
from hypermask_fast.masks.checks import check_mask, check_sparsity
from hypermask_fast.masks.thresholds import mask_threshold
from hypermask_fast.masks.types import Mask

_MASK_STATE = ("active", "mask_source")


class MaskedWeights(NamedTuple):
    """Weights multiplied with their masks outside; they replace the layer's own, bias None too."""

    weight: Tensor
    bias: Tensor | None


Replacement = Mask | MaskedWeights | TaskMasks | IntervalWeights
"""What a layer runs with in place of its own weights."""


def _product(found: Replacement, key: str, own: Any) -> Any:
    return getattr(found, key) if isinstance(found, MaskedWeights) else own


class _Masked(TaskLayer):
    """What the masked layers share. Without a mask they are the plain layer."""

    active: Replacement | None = None
    mask_source: str = "none"

    # Who reads them past the layer gets masked weights too; a mask that the layer forms does not.
    weight: Any = readable("weight", _product)
    bias: Any = readable("bias", _product)

    def set_mask(
        self,
        weight_logits: Tensor,
        bias_logits: Tensor | None = None,
        *,
        sparsity: float = 0.0,
    ) -> None:
        """Mask the layer from now on with ``|tanh z|``, thresholded per tensor.

        The thresholds are those of the present values: after an optimizer changed the logits in
        place, set the mask again.

        Args:
            weight_logits: Of the weight's shape; gradients flow to it.
            bias_logits: Of the bias's shape, or None to leave the bias unmasked.
            sparsity: Percent of each tensor's entries to remove, in [0, 100]. Default 0.

        Raises:
            ValueError, TypeError: A shape, device, dtype or the sparsity does not fit.
        """
        self.active = self._mask_of(weight_logits, bias_logits, sparsity)
        self.mask_source = f"logits(p={sparsity:g})"

    def _mask_of(self, weight_logits: Tensor, bias_logits: Tensor | None, sparsity: float) -> Mask:
        mask = Mask(weight_logits, bias_logits)
        check_mask(self.weight, self.bias, mask)
        check_sparsity(sparsity)
        thresholds = [None if z is None else mask_threshold(z, sparsity) for z in mask[:2]]
        return Mask(weight_logits, bias_logits, *thresholds)

    def clear_mask(self) -> None:
        """Return to the plain layer."""
        for name in _MASK_STATE:
            vars(self).pop(name, None)

    @contextmanager
    def masked(
        self, weight_logits: Tensor, bias_logits: Tensor | None = None, *, sparsity: float = 0.0
    ) -> Iterator[Self]:
        """Mask the layer inside a ``with`` block, in its thread; see :meth:`set_mask`."""
        with Forward({self: self._mask_of(weight_logits, bias_logits, sparsity)}):
            yield self

    def extra_repr(self) -> str:
        source = "logits" if isinstance(self.here(), Mask) else self.mask_source
        return f"{super().extra_repr()}, mask={source}"


def _check_convertible(name: str, layer: object, plain: type[nn.Module]) -> None:
    kind = type(layer).__name__
    if not isinstance(layer, plain):
        raise TypeError(f"{name} is a {kind}; give an nn.{plain.__name__}")
    if not isinstance(layer, _Masked) and type(layer).forward is not plain.forward:
        raise TypeError(
            f"{name} is a {kind} with a forward of its own, which a masked layer would not run; "
            f"give an nn.{plain.__name__}"
        )
    for key in ("weight", "bias"):
        if key not in layer._parameters:
            raise TypeError(
                f"{name} is a {kind} whose {key} is computed and not a parameter; remove its "
                "parametrization, weight norm, spectral norm or pruning first"
            )
    if isinstance(layer.weight, nn.parameter.UninitializedParameter):
        raise TypeError(f"{name} is a {kind} without a shape yet; run one batch through it first")


def _converted(layer: nn.Module, cls: type[nn.Module], share: bool) -> Any:
    twin = copy.copy(layer) if share else copy.deepcopy(layer)
    # The registries of parameters and hooks are the twin's own, even where it shares what is in
    # them: what is registered on one layer later does not appear on the other.
    vars(twin).update({k: v.copy() for k, v in vars(twin).items() if isinstance(v, dict)})
    twin.__class__ = cls
    return twin


def _plain(layer: MaskedLinear | MaskedConv2d, share: bool) -> Any:
    mask = layer.stand_in()
    own: dict[str, Any] = layer._parameters
    twin = _converted(layer, layer.plain, share)
    for name in _MASK_STATE:
        vars(twin).pop(name, None)
    if mask is None:
        return twin
    assert isinstance(mask, Mask | MaskedWeights), "a plain layer has the weights of one task"
    if isinstance(mask, Mask):
        (weight,), _ = reference.mask_weights(
            [own["weight"]], [mask.weight], [mask.weight_threshold]
        )
        bias = own["bias"]
        if mask.bias is not None:
            (bias,), _ = reference.mask_weights([bias], [mask.bias], [mask.bias_threshold])
        mask = MaskedWeights(weight, bias)
    for name, value in mask._asdict().items():
        folded = None
        if value is not None:
            folded = nn.Parameter(value.detach().clone(), own[name].requires_grad)
        setattr(twin, name, folded)
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
            TypeError: ``linear`` is not an ``nn.Linear``, has a forward of its own, a weight or
                bias that is computed (parametrized, pruned), or no shape yet (lazy).
        """
        _check_convertible("linear", linear, cls.plain)
        return _converted(linear, cls, share)

    def to_linear(self, *, share: bool = True) -> nn.Linear:
        """Return an ``nn.Linear``, with its own masked weights while a mask is set.

        Args:
            share: Share the parameters where no mask is set (default), or copy them.
        """
        return _plain(self, share)

    def forward(self, x: Tensor) -> Tensor:
        mask = self.stand_in()
        if mask is None:
            return super().forward(x)
        if isinstance(mask, MaskedWeights):
            return self.ran(nn.functional.linear(x, mask.weight, mask.bias))
        if isinstance(mask, IntervalWeights):
            return self.ran(mask.applied(x, nn.functional.linear))
        if isinstance(mask, TaskMasks):
            return tasks.masked_linear(x, self.weight, self.bias, mask)
        check_mask(self.weight, self.bias, mask)
        return self.ran(functional.masked_linear(x, self.weight, self.bias, mask))


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
            TypeError: As for :meth:`MaskedLinear.from_linear`.
        """
        _check_convertible("conv", conv, cls.plain)
        return _converted(conv, cls, share)

    def to_conv2d(self, *, share: bool = True) -> nn.Conv2d:
        """Return an ``nn.Conv2d``; see :meth:`MaskedLinear.to_linear`."""
        return _plain(self, share)

    def forward(self, x: Tensor) -> Tensor:
        mask = self.stand_in()
        if mask is None:
            return super().forward(x)
        if isinstance(mask, MaskedWeights):
            return self.ran(self._conv_forward(x, mask.weight, mask.bias))
        if isinstance(mask, IntervalWeights):
            return self.ran(mask.applied(x, self._conv_forward))
        assert isinstance(mask, Mask), "masks of several tasks are for linear layers"
        padding: int | tuple[int, ...] | str = self.padding
        if self.padding_mode != "zeros":
            x = nn.functional.pad(x, self._reversed_padding_repeated_twice, self.padding_mode)
            padding = 0
        check_mask(self.weight, self.bias, mask)
        geometry = (self.stride, padding, self.dilation, self.groups)
        return self.ran(functional.masked_conv2d(x, self.weight, self.bias, mask, geometry))


MaskedLayer = MaskedLinear | MaskedConv2d

MASKED_LAYERS: dict[type[nn.Module], type[MaskedLayer]] = {
    cls.plain: cls for cls in (MaskedLinear, MaskedConv2d)
}
