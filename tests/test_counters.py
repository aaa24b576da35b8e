"""Random numbers that are a function of counters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hypermask_fast.counters import (
    counter_hash,
    counter_normal,
    counter_permutation,
    counter_randint,
)
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


@pytest.mark.parametrize("shape", [(4, 5), (3, 3), (1,)])
def test_normal_numbers_are_made_of_the_halves_of_a_hash(shape):
    n = int(np.prod(shape))
    bits = hash_reference(3, 7, np.arange(-(-n // 2)))
    u = ((bits >> np.uint64(32)).astype(np.float64) + 1) / 2**32
    angle = 2 * np.pi * (bits & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2**32
    radius = np.sqrt(-2 * np.log(u))
    expected = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:n]
    found = counter_normal(shape, 3, torch.tensor(7))
    assert (found.dtype, tuple(found.shape)) == (torch.float32, shape)
    # An angle of up to 2 pi and a radius of up to 6.7, in float32.
    np.testing.assert_allclose(found.flatten(), expected, atol=1e-5)


def test_normal_numbers_are_normal():
    drawn, n = counter_normal((200, 500), 1, 2, 3).double().flatten(), 100_000
    # Five standard errors of each moment of a normal sample.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((drawn**power).mean()) - moment) < 5 * (variance / n) ** 0.5
    first, second = drawn.chunk(2)
    assert abs(float((first * second).mean())) < 5 * (2 / n) ** 0.5
