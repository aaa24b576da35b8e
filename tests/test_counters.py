"""Random numbers that are a function of counters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hypermask_fast.counters import counter_hash, counter_permutation, counter_randint
from tests.support.counter_reference import GOLDEN, hash_reference, randint_reference

# The first outputs of SplitMix64 for two seeds, as published with the generator.
SPLITMIX64 = {
    0: (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC),
    1234567: (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431),
}


@pytest.mark.parametrize("seed", SPLITMIX64)
def test_hash_is_splitmix64(seed):
    words = [(seed + number * GOLDEN) % 2**64 for number in range(4)]
    expected = list(SPLITMIX64[seed])
    as_tensor = torch.tensor([w - 2**64 if w >= 2**63 else w for w in words])
    assert [int(counter_hash(word)) % 2**64 for word in words] == expected
    assert [int(value) % 2**64 for value in counter_hash(as_tensor)] == expected


def test_hash_of_many_words_agrees_with_numpy(device):
    seeds = torch.tensor([0, 1, -1, 2**62, -(2**63), 2**63 - 1])[:, None]
    places = torch.arange(257)
    expected = hash_reference(seeds.numpy(), 7, places.numpy(), -5)
    got = counter_hash(seeds.to(device), 7, places.to(device), -5)
    assert got.dtype == torch.int64
    assert np.array_equal(got.cpu().numpy().view(np.uint64), expected)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param((3, 5, 11, 13), id="all-int"),
        pytest.param((torch.tensor(3), 5, torch.tensor(11), 13), id="mixed"),
        pytest.param((3, 5, torch.tensor(11, dtype=torch.int32), 13), id="int32"),
        pytest.param((3, 5 - 2**64, 11, torch.tensor(13)), id="modulo-2-64"),
    ],
)
def test_hash_does_not_depend_on_how_words_are_held(words):
    assert int(counter_hash(*words)) % 2**64 == int(hash_reference(3, 5, 11, 13))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_hash_refuses_other_types(dtype):
    with pytest.raises(TypeError, match="integer"):
        counter_hash(torch.zeros(3, dtype=dtype))


def test_randint_is_the_scaled_upper_half_and_uniform():
    places = torch.arange(90_000)
    draws = counter_randint(9, 1, 2, places)
    assert np.array_equal(draws.numpy(), randint_reference(9, 1, 2, places.numpy()))
    counts = torch.bincount(draws, minlength=9).double()
    # 99.99 % point of chi-square with 8 degrees of freedom.
    assert len(counts) == 9
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 31.8
    with pytest.raises(ValueError, match="between 1 and"):
        counter_randint(0, 1)


def test_permutation_orders_the_hashes():
    order = counter_permutation(1000, 4, 5).numpy()
    assert sorted(order) == list(range(1000))
    keys = hash_reference(4, 5, np.arange(1000)).view(np.int64)
    assert np.array_equal(order, np.argsort(keys, kind="stable"))
