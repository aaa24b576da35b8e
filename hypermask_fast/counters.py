"""Random numbers that are a function of counters: no state, the same bits on every device.

The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014) used as a hash, in int64 arithmetic that wraps around.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# What a draw is for; part of the hash, so that draws of one sample do not depend on each other.
ORDER, AUGMENT, PERMUTATION, REGULARIZED, SCORES, LATENT, REPLAY = 1, 2, 3, 4, 5, 6, 7

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
# (shift right, then multiply) rounds of the finaliser; the last one only shifts.
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31


def _signed(word: int) -> int:
    word &= _MASK
    return word - (1 << 64) if word >> 63 else word


def _shift_right(word: Tensor, bits: int) -> Tensor:
    # torch's >> repeats the sign bit.
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _mix_int(word: int) -> int:
    word &= _MASK
    for bits, factor in _ROUNDS:
        word = ((word ^ (word >> bits)) * factor) & _MASK
    return word ^ (word >> _LAST_SHIFT)


def _mix(word: Tensor) -> Tensor:
    for bits, factor in _ROUNDS:
        word = (word ^ _shift_right(word, bits)) * _signed(factor)
    return word ^ _shift_right(word, _LAST_SHIFT)


def counter_hash(*words: int | Tensor) -> Tensor:
    """Hash a sequence of counters to 64 bits.

    Starting from h = 0, each word w gives ``h = mix((h ^ w) + golden)``, where ``mix`` is the
    finaliser of SplitMix64; the hash of one word is that generator's first output for this seed.

    Args:
        *words: Python integers (taken modulo 2**64) and integer tensors, which broadcast. Integers
            that come first are folded on the host.

    Returns:
        int64 tensor of the broadcast shape, on the tensors' device; 0-d on the CPU if all words are
        Python integers.

    Raises:
        TypeError: a tensor is not of an integer type.
    """
    host = 0
    state: Tensor | None = None
    for word in words:
        if isinstance(word, Tensor):
            if word.is_floating_point() or word.is_complex() or word.dtype == torch.bool:
                raise TypeError(f"a counter must be an integer tensor, got {word.dtype}")
            left: int | Tensor = _signed(host) if state is None else state
            state = _mix((word.to(torch.int64) ^ left) + _signed(_GOLDEN))
        elif state is None:
            host = _mix_int((host ^ (word & _MASK)) + _GOLDEN)
        else:
            state = _mix((state ^ _signed(word)) + _signed(_GOLDEN))
    return torch.tensor(_signed(host)) if state is None else state


def counter_randint(high: int, *words: int | Tensor) -> Tensor:
    """Draw integers that are uniform on 0 .. high - 1.

    The upper 32 bits of the hash are multiplied by ``high`` and shifted back; the deviation from
    uniform is below ``high / 2**32``.

    Args:
        high: Number of values, 1 to 2**31.
        *words: As for :func:`counter_hash`.

    Returns:
        int64 tensor of the words' broadcast shape.
    """
    if not 1 <= high <= 1 << 31:
        raise ValueError(f"high must be between 1 and 2**31, got {high}")
    return (_shift_right(counter_hash(*words), 32) * high) >> 32


def counter_normal(
    shape: Sequence[int], *words: int | Tensor, device: torch.device | str | None = None
) -> Tensor:
    """Draw numbers of the standard normal distribution.

    Hash i of ``(*words, i)`` gives numbers i and i + ceil(n / 2) of all n by the transform of Box
    and Muller: its upper half the radius, its lower half the angle.

    Args:
        shape: Of the result.
        *words: As for :func:`counter_hash`; tensors are 0-d.
        device: Where they are made. Default: the CPU.

    Returns:
        float32 tensor of this shape.
    """
    n = math.prod(shape)
    bits = counter_hash(*words, torch.arange(-(-n // 2), device=device))
    # At least 2^-32, whose logarithm is finite.
    radius = ((_shift_right(bits, 32) + 1).float() * 2.0**-32).log().mul(-2).sqrt()
    angle = (bits & 0xFFFFFFFF).float() * (2 * math.pi * 2.0**-32)
    return torch.cat((radius * angle.cos(), radius * angle.sin()))[:n].view(*shape)


def counter_permutation(
    n: int, *words: int | Tensor, device: torch.device | str | None = None
) -> Tensor:
    """Return a permutation of 0 .. n - 1: the stable order of the hashes of ``(*words, i)``.

    Args:
        n: Length.
        *words: As for :func:`counter_hash`.
        device: Where the permutation is made. Default: the CPU.

    Returns:
        int64 tensor (n,).
    """
    keys = counter_hash(*words, torch.arange(n, device=device))
    return torch.argsort(keys, stable=True)
