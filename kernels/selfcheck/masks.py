"""Cases of the kernels of masks: percentiles, masked weights, the largest scores, bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.kernels.selfcheck.case import Case, Draw, Right
from hypermask_fast.kernels.selfcheck.rounded import EPS, Rounded, exact, number

# The first one takes several blocks.
_SHAPES = ((53, 97), (37,), (3, 5, 3, 3))
_SIZES = (5141, 37, 135)
_MASKED = (True, False, True)
_LEVEL = 0.3


def mask_of(logits: Tensor, threshold: Tensor | None) -> Rounded:
    """Return |tanh z|, 0 where it is below a threshold: of two units in the last place."""
    z = exact(logits).value
    mask = z.tanh().abs()
    found = Rounded(mask, 2 * EPS * mask).stored(logits.dtype)
    return found if threshold is None else found.where(~(mask < threshold.cpu().double()))


def slope_of(logits: Tensor, mask: Rounded) -> Rounded:
    """Return the slope of |tanh z|, 0 where an entry was removed."""
    z = exact(logits).value
    # A mask is near 1 where z is large; the slope's error is of 1, not of the slope.
    slope = number(1.0).minus(mask.times(mask)).where(mask.value != 0)
    return Rounded(slope.value * z.sign(), slope.error)


def thresholds(draw: Draw, percent: float) -> Case:
    from hypermask_fast.kernels.masks.select import thresholds as kernel

    z = draw.normal(sum(_SIZES))
    p = draw.put(torch.tensor(percent, dtype=torch.float64))

    def launch() -> list[Tensor]:
        found = kernel(z, _SIZES, p, _MASKED)
        assert found is not None
        return [found.values[0], found.values[2], found.has_nan]

    def right() -> dict[str, Right]:
        first, _, last = (
            reference.mask_threshold(part, percent) for part in exact(z).value.split(_SIZES)
        )
        near = [Rounded(value, 4 * EPS * value) for value in (first, last)]
        return {
            "the first threshold": near[0],
            "the last threshold": near[1],
            "has_nan": torch.tensor(False),
        }

    return Case(launch, right)


def _weights(draw: Draw) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Return weights, gradients of their products, logits, and thresholds by tensor."""
    weights, grads = ([draw.normal(*shape) for shape in _SHAPES] for _ in range(2))
    levels = [_LEVEL if masked else -torch.inf for masked in _MASKED]
    return (
        weights,
        grads,
        draw.logits(sum(_SIZES), threshold=_LEVEL),
        draw.put(torch.tensor(levels, dtype=torch.float32)),
    )


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _masks(z: Tensor, levels: Tensor) -> Rounded:
    each = levels.cpu().repeat_interleave(torch.tensor(_SIZES))
    return mask_of(z, each)


def mask_weights(draw: Draw) -> Case:
    from hypermask_fast.kernels.masks.weights import forward as kernel

    weights, _, z, levels = _weights(draw)
    previous = draw.normal(sum(_SIZES))

    def launch() -> list[Tensor]:
        products, masks, drift = kernel(weights, z, levels, _MASKED, previous, True)
        made = [product for product in products if product is not None]
        return [_flat(made), masks, drift]

    def right() -> dict[str, Right]:
        masks, w = _masks(z, levels), exact(_flat(weights))
        kept = torch.tensor(_MASKED).repeat_interleave(torch.tensor(_SIZES))
        products = Rounded(*(part[kept] for part in w.times(masks)))
        drift = w.minus(exact(previous)).magnitude().times(masks).sum()
        return {"W mask": products, "the masks": masks, "the drift": drift}

    return Case(launch, right)


def mask_weights_backward(draw: Draw) -> Case:
    from hypermask_fast.kernels.finite import known
    from hypermask_fast.kernels.masks.weights import backward as kernel

    weights, grads, z, levels = _weights(draw)
    previous, along = draw.normal(sum(_SIZES)), draw.number(0.7)
    given = [g if masked else None for g, masked in zip(grads, _MASKED, strict=True)]

    def launch() -> list[Tensor]:
        of_logits, of_weights = kernel(weights, z, levels, given, previous, True, along)
        flags = known(of_logits)
        assert flags is not None
        return [of_logits, _flat(of_weights), flags.min() == 1]

    def right() -> dict[str, Right]:
        masks, w = _masks(z, levels), exact(_flat(weights))
        kept = torch.tensor(_MASKED).repeat_interleave(torch.tensor(_SIZES))
        grad, away = exact(_flat(grads)).where(kept), w.minus(exact(previous))
        drift = number(0.7)
        of_mask = grad.times(w).plus(drift.times(away.magnitude()))
        signed = Rounded(drift.value * away.value.sign(), drift.error.expand(away.value.shape))
        return {
            "dz": of_mask.times(slope_of(z, masks)),
            "dW": grad.plus(signed).times(masks),
            "what tells that dz is finite": torch.tensor(True),
        }

    return Case(launch, right)


def _scores(draw: Draw) -> tuple[list[Tensor], Tensor, list[int], Tensor]:
    """Return weights, scores with equal ones, how many are dropped, and which are kept."""
    weights = [draw.normal(*shape) for shape in _SHAPES]
    scores = (16 * draw.normal(sum(_SIZES))).round() / 16
    dropped = [size // 3 for size in _SIZES]
    return weights, scores, dropped, reference.top_k_mask(scores.cpu(), _SIZES, dropped)


def top_k(draw: Draw) -> Case:
    from hypermask_fast.kernels.masks.top_k import forward as kernel

    weights, scores, dropped, kept = _scores(draw)

    def launch() -> list[Tensor]:
        mask = kernel(None, scores, _SIZES, dropped)[1]
        assert mask is not None
        products = (kernel(weights, scores, _SIZES, by)[0] for by in (dropped, None))
        return [mask, *map(_flat, products)]

    def right() -> dict[str, Right]:
        flat = _flat(weights).cpu()
        return {
            "the mask of the largest": kept,
            "the largest": torch.where(kept, flat, 0),
            "those of scores from 0": torch.where(scores.cpu() >= 0, flat, 0),
        }

    return Case(launch, right)


def top_k_backward(draw: Draw, by_magnitude: bool) -> Case:
    from hypermask_fast.kernels.masks.top_k import backward as kernel

    weights, scores, *_ = _scores(draw)
    grads = [draw.normal(*shape) for shape in _SHAPES]

    def right() -> dict[str, Right]:
        product = exact(_flat(grads)).times(exact(_flat(weights)))
        sign = scores.cpu().double().sign() if by_magnitude else 1.0
        return {"dscores": Rounded(product.value * sign, product.error)}

    return Case(lambda: [kernel(weights, scores, grads, by_magnitude)], right)


def pack(draw: Draw) -> Case:
    from hypermask_fast.kernels.masks.top_k import pack as kernel

    mask = draw.normal(1003) > 0

    def right() -> dict[str, Right]:
        padded = torch.nn.functional.pad(mask.cpu().int(), (0, -len(mask) % 8)).view(-1, 8)
        return {"the bits": (padded << torch.arange(8)).sum(1).to(torch.uint8)}

    return Case(lambda: [kernel(mask)], right)


CASES: dict[str, list[Callable[[Draw], Case]]] = {
    "mask_thresholds": [partial(thresholds, percent=30.0)],
    "mask_weights": [mask_weights],
    "mask_weights_backward": [mask_weights_backward],
    "top_k": [top_k],
    "top_k_backward": [partial(top_k_backward, by_magnitude=by) for by in (True, False)],
    "pack": [pack],
}
"""Cases by the kernel that they are of."""
