"""Masks of one bit an entry: sums and products without unpacking."""

from __future__ import annotations

import pytest
import torch

from hypermask_fast.masks import packed
from hypermask_fast.native import library


@pytest.mark.parametrize("entries", [1, 7, 8, 13, 8192, 50_003])
def test_a_mask_takes_a_bit_an_entry(entries: int) -> None:
    mask = torch.rand(entries, generator=torch.Generator().manual_seed(entries)) < 0.3
    bits = packed.pack(mask)
    assert bits.dtype == torch.uint8
    assert bits.nbytes == -(-entries // 8)
    assert torch.equal(packed.unpack(bits, entries), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("passes", ["native", "pytorch"])
def test_sums_and_products_are_those_of_the_masks(
    dtype: torch.dtype, passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if passes == "pytorch":
        monkeypatch.setattr(library, "load", lambda: None)
    elif library.load() is None:
        pytest.skip(f"the native passes are not available: {library.status()}")
    generator = torch.Generator().manual_seed(0)
    for entries in (5, 16, 30_001):
        masks = [torch.rand(entries, generator=generator) < 0.4 for _ in range(5)]
        bits = [packed.pack(mask) for mask in masks]
        factors = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        values = torch.randn(entries, generator=generator).to(dtype)
        eps = torch.finfo(dtype).eps
        total = packed.weighted_sum(bits, factors, entries, dtype)
        exact = sum(f * m.double() for f, m in zip(factors, masks, strict=True))
        # Five terms of at most 1, each rounded, and as many roundings of their sum.
        assert (total - exact).abs().max() <= 25 * eps
        dots = packed.dots(bits, values)
        for dot, mask in zip(dots, masks, strict=True):
            picked = values[mask].double()
            # A sum of n rounded terms errs by less than n eps of the sum of their magnitudes.
            assert abs(dot.double() - picked.sum()) <= entries * eps * picked.abs().sum()
    union = packed.union(bits[:2], bits[0])
    assert torch.equal(packed.unpack(union, entries), masks[0] | masks[1])
    assert not packed.union([], bits[0]).any()
    assert packed.dots([], values).shape == (0,)
