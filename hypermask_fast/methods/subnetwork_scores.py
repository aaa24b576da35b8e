"""Scores of a network's weights: drawn at random, or so that they make a given mask."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hypermask_fast.counters import SCORES, counter_randint

_UNIFORM_BITS = 24
_DRAWN_AT_ONCE = 2**14
_APART = 1 - 2.0**-12
"""Keeps scores that are dropped below those that are kept, whatever rounding does."""


def bound_of(shape: Sequence[int]) -> float:
    """Return the largest magnitude of a weight's drawn scores: 1 / sqrt(fan_in)."""
    return 1 / math.sqrt(math.prod(shape[1:]))


@torch.no_grad()
def draw(out: Tensor, shapes: Sequence[Sequence[int]], seed: int, task: int) -> None:
    """Draw a task's scores, uniform on +-1 / sqrt(fan_in) of each layer.

    Args:
        out: (N,), those of all weights, one after the other.
        shapes: Of the weights.
        seed, task: Which they follow from.
    """
    if out.dtype == torch.float16:
        # Its largest number is 65504, and what is drawn goes up to 2^24.
        wide = torch.empty_like(out, dtype=torch.float32)
        draw(wide, shapes, seed, task)
        out.copy_(wide)
        return
    parts = out.split([math.prod(shape) for shape in shapes])
    for layer, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
        for first in range(0, len(part), _DRAWN_AT_ONCE):
            piece = part[first : first + _DRAWN_AT_ONCE]
            entries = torch.arange(first, first + len(piece), device=part.device)
            piece.copy_(counter_randint(1 << _UNIFORM_BITS, seed, SCORES, task, layer, entries))
        bound = bound_of(shape)
        part.add_(0.5).mul_(2.0**-_UNIFORM_BITS * 2 * bound).sub_(bound)


@torch.no_grad()
def arrange(scores: Tensor, mask: Tensor, shapes: Sequence[Sequence[int]], rule: str) -> None:
    """Change drawn scores so that they make a mask; they stay as uniform as its share allows.

    By magnitude, those kept get the upper share of the range and the others the lower one; by sign,
    those kept are positive and the others negative.

    Args:
        scores: (N,) of :func:`draw`.
        mask: bool (N,).
        shapes: Of the weights.
        rule: "top_k" or "threshold".
    """
    if rule == "threshold":
        tiny = torch.finfo(scores.dtype).tiny
        scores.abs_().clamp_min_(tiny).mul_(torch.where(mask, 1.0, -1.0))
        return
    sizes = [math.prod(shape) for shape in shapes]
    wide = torch.float32 if scores.dtype == torch.float16 else scores.dtype
    for part, kept, shape in zip(scores.split(sizes), mask.split(sizes), shapes, strict=True):
        share = (kept.sum().to(wide) / len(part)).to(part.dtype)
        low = bound_of(shape) * (1 - share)
        above = part.abs() * share + low
        part.copy_(torch.where(kept, above, part.abs() * (1 - share) * _APART) * part.sign())
