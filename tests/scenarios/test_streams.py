"""Counter-based random numbers, batch preprocessing and the training stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hypermask_fast.counters import (
    AUGMENT,
    ORDER,
    counter_hash,
    counter_permutation,
    counter_randint,
)
from hypermask_fast.errors import ConfigError
from hypermask_fast.scenarios import BatchStream, ImageDataset, ImageSet, Preprocess, split

GOLDEN = 0x9E3779B97F4A7C15
# The first outputs of SplitMix64 for two seeds, as published with the generator.
SPLITMIX64 = {
    0: (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC),
    1234567: (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431),
}


def hash_reference(*words) -> np.ndarray:
    """The same hash in numpy's unsigned arithmetic."""
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for word in words:
            word = np.asarray(word)
            state = (state ^ word.astype(np.int64).astype(np.uint64)) + np.uint64(GOLDEN)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def randint_reference(high: int, *words) -> np.ndarray:
    return ((hash_reference(*words) >> np.uint64(32)) * np.uint64(high)) >> np.uint64(32)


def make_task(n: int, *, shape=(1, 4, 4), crop=0, flip=False, classes=3):
    """A task in which every image is told by its first pixel, and the label by that."""
    images = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1).repeat(1, *shape)
    images[:, :, 1:, :] = torch.randint(0, 256, (n, shape[0], shape[1] - 1, shape[2])).to(
        torch.uint8
    )
    images_set = ImageSet(images, torch.arange(n) % classes)
    dataset = ImageDataset("made", images_set, images_set, tuple("abcdefgh"[:classes]))
    return split(dataset, crop=crop, flip=flip)[0]


def ids(x: torch.Tensor) -> list[int]:
    return (x[:, 0, 0, 0] * 255).round().int().tolist()


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


def transform_reference(images, draws, *, pad=0, permutation=None, crop=0, mean=None, std=None):
    """One image at a time, in the order of the published pipelines."""
    result = []
    for image, (top, left, mirrored) in zip(images, draws, strict=True):
        x = image.astype(np.float32) / np.float32(255)
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
        channels, height, width = x.shape
        x = np.pad(x, ((0, 0), (crop, crop), (crop, crop)))
        x = x[:, top : top + height, left : left + width]
        if mirrored:
            x = x[:, :, ::-1]
        if permutation is not None:
            x = x.reshape(-1)[permutation].reshape(channels, height, width)
        if mean is not None:
            x = x - np.array(mean, np.float32)[:, None, None]
            x = x / np.array(std, np.float32)[:, None, None]
        result.append(x)
    return np.stack(result)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        pytest.param((1, 6, 5), {}, id="scale"),
        pytest.param((1, 6, 5), {"pad": 2}, id="pad"),
        pytest.param((3, 6, 5), {"crop": 2}, id="crop"),
        pytest.param((3, 6, 5), {"flip": True}, id="flip"),
        pytest.param((3, 6, 5), {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.1)}, id="normalise"),
        pytest.param((2, 4, 4), {"pad": 1, "permutation": True}, id="pad-permute"),
        pytest.param(
            (3, 6, 5),
            {"crop": 2, "flip": True, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.1)},
            id="published-cifar",
        ),
        pytest.param(
            (1, 4, 4),
            {"pad": 1, "crop": 1, "flip": True, "permutation": True, "mean": (0.1,), "std": (2,)},
            id="everything",
        ),
    ],
)
def test_preprocess_agrees_with_numpy(shape, options, device):
    images = torch.randint(0, 256, (40, *shape)).to(torch.uint8)
    options = dict(options)
    if options.pop("permutation", False):
        side = 2 * options["pad"]
        pixels = shape[0] * (shape[1] + side) * (shape[2] + side)
        options["permutation"] = torch.randperm(pixels)
    preprocess = Preprocess(**options)
    draws = preprocess.draws(1, 2, 3, torch.arange(40))
    x = preprocess.to(device)(images.to(device), draws.to(device)).cpu()
    plain = {name: value for name, value in options.items() if name != "flip"}
    if "permutation" in plain:
        plain["permutation"] = plain["permutation"].numpy()
    expected = transform_reference(images.numpy(), draws.numpy(), **plain)
    assert x.dtype == torch.float32
    assert tuple(x.shape[1:]) == preprocess.output_shape(shape)
    # Division and subtraction are rounded the same way everywhere on a CPU; a GPU may use
    # a reciprocal, one unit in the last place away.
    assert np.allclose(x.numpy(), expected, rtol=0 if device.type == "cpu" else 3e-7, atol=0)


def test_draws_cover_their_range_and_belong_to_samples():
    preprocess = Preprocess(crop=4, flip=True)
    draws = preprocess.draws(0, 0, 5, torch.arange(2000))
    assert [draws[:, i].unique().tolist() for i in range(3)] == [[*range(9)], [*range(9)], [0, 1]]
    for purpose, high in enumerate((9, 9, 2)):
        expected = randint_reference(high, 0, 0, AUGMENT, purpose, 5, np.arange(2000))
        assert np.array_equal(draws[:, purpose].numpy(), expected)
    correlation = np.corrcoef(draws.numpy().T)
    # Standard error 1/sqrt(2000): independent columns stay within 4 of it.
    assert np.abs(correlation - np.eye(3)).max() < 4 / 2000**0.5


def test_draws_take_the_step_as_a_tensor():
    preprocess = Preprocess(crop=2, flip=True)
    position = torch.arange(7)
    assert torch.equal(
        preprocess.draws(1, 2, torch.tensor(9), position), preprocess.draws(1, 2, 9, position)
    )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"pad": -1}, id="negative-pad"),
        pytest.param({"crop": -1}, id="negative-crop"),
        pytest.param({"mean": (0.5,)}, id="mean-without-std"),
        pytest.param({"std": (0.5,)}, id="std-without-mean"),
        pytest.param({"mean": (0.5,), "std": (0.0,)}, id="zero-std"),
        pytest.param({"mean": (0.5,), "std": (0.5, 0.5)}, id="lengths-differ"),
    ],
)
def test_preprocess_refuses_settings(options):
    with pytest.raises(ConfigError):
        Preprocess(**options)


@pytest.mark.parametrize(
    ("options", "images", "error"),
    [
        pytest.param({}, torch.zeros(1, 1, 2, 2), TypeError, id="float-images"),
        pytest.param({"flip": True}, None, ValueError, id="no-draws"),
        pytest.param({"permutation": torch.arange(5)}, None, ValueError, id="permutation-length"),
        pytest.param({"mean": (0, 0), "std": (1, 1)}, None, ValueError, id="channels"),
    ],
)
def test_preprocess_refuses_images(options, images, error):
    images = torch.zeros(1, 1, 2, 2, dtype=torch.uint8) if images is None else images
    with pytest.raises(error):
        Preprocess(**options)(images)


@pytest.mark.parametrize(
    ("n", "batch_size"),
    [
        pytest.param(12, 4, id="divides"),
        pytest.param(13, 4, id="straddles"),
        pytest.param(5, 5, id="whole"),
        pytest.param(5, 6, id="one-more"),
        pytest.param(3, 11, id="several-passes-in-a-batch"),
        pytest.param(1, 4, id="one-image"),
    ],
)
def test_every_pass_is_the_permutation_of_its_counters(n, batch_size):
    stream = make_task(n).stream(batch_size, seed=3, task_id=2)
    steps = -(-4 * n // batch_size)
    batches = [stream.batch(step) for step in range(steps)]
    seen = [i for x, _ in batches for i in ids(x)]
    labels = torch.cat([y for _, y in batches])
    assert all(len(x) == len(y) == batch_size for x, y in batches)
    assert labels.tolist() == [i % 3 for i in seen]
    assert stream.steps_per_epoch == int(np.ceil(n / batch_size))
    for number in range(4):
        keys = hash_reference(3, 2, ORDER, number, np.arange(n)).view(np.int64)
        assert seen[number * n : (number + 1) * n] == np.argsort(keys, kind="stable").tolist()


def test_passes_differ():
    stream = make_task(50).stream(50)
    orders = [tuple(ids(stream.batch(step)[0])) for step in range(4)]
    assert len(set(orders)) == 4


def test_batches_do_not_depend_on_history():
    task = make_task(13, shape=(3, 6, 6), crop=2, flip=True)
    stream = task.stream(5, seed=1, task_id=4)
    forward = [stream.batch(step) for step in range(20)]
    other = task.stream(5, seed=1, task_id=4)
    for step in (17, 3, 4, 0, 19, 11, 2, 18, 3):
        for value, expected in zip(other.batch(step), forward[step], strict=True):
            assert torch.equal(value, expected)


@pytest.mark.parametrize("other", [{"seed": 2}, {"task_id": 5}], ids=["seed", "task"])
def test_seed_and_task_select_the_stream(other):
    task = make_task(40)
    base = {"seed": 1, "task_id": 4}
    assert ids(task.stream(40, **base).batch(0)[0]) != ids(
        task.stream(40, **{**base, **other}).batch(0)[0]
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_step_may_be_a_tensor(dtype):
    stream = make_task(13, shape=(1, 6, 6), crop=1, flip=True).stream(5)
    for step in (0, 2, 7, 1_000_000_000):
        x, y = stream.batch(step)
        for tensor_x, tensor_y in (
            stream.batch(torch.tensor(step, dtype=dtype)),
            stream.gather(torch.tensor(step, dtype=dtype)),
        ):
            assert torch.equal(tensor_x, x)
            assert torch.equal(tensor_y, y)


def test_gather_reads_one_table_in_place():
    stream = make_task(7).stream(4)
    place = torch.zeros((), dtype=torch.int64)
    address = stream._table.data_ptr()
    reference = make_task(7).stream(4)
    for step in range(9):
        stream.prepare(step)
        place.fill_(step)
        assert ids(stream.gather(place)[0]) == ids(reference.batch(step)[0])
    assert stream._table.data_ptr() == address


def test_samples_are_augmented_one_by_one():
    """Crop and flip of sample b of step s are the numpy reference's for (seed, task, s, b)."""
    task = make_task(13, shape=(3, 6, 6), crop=2, flip=True)
    stream = task.stream(8, seed=5, task_id=6)
    images = task.train.images.numpy()
    different = set()
    for step in range(6):
        position = np.arange(step * 8, step * 8 + 8)
        chosen = []
        for place in position:
            keys = hash_reference(5, 6, ORDER, place // 13, np.arange(13)).view(np.int64)
            chosen.append(np.argsort(keys, kind="stable")[place % 13])
        draws = np.stack(
            [
                randint_reference(high, 5, 6, AUGMENT, purpose, step, np.arange(8))
                for purpose, high in enumerate((5, 5, 2))
            ],
            axis=-1,
        ).astype(np.int64)
        different |= {tuple(draw) for draw in draws.tolist()}
        expected = transform_reference(images[chosen], draws, crop=2)
        assert np.array_equal(stream.batch(step)[0].numpy(), expected)
    # 48 draws of 50 equally likely ones: about 31 differ, at most 6 if a batch shared one.
    assert len(different) > 20


def test_stream_refuses_settings():
    task = make_task(5)
    with pytest.raises(ValueError, match="batch_size is 0"):
        BatchStream(task.train, task.train_preprocess, 0)
    with pytest.raises(ValueError, match="step is -1"):
        task.stream(2).batch(-1)


@pytest.mark.gpu
def test_cuda_graph_replays_the_stream():
    task = make_task(13, shape=(3, 6, 6), crop=2, flip=True)
    expected = task.stream(5, seed=1)
    stream = task.to("cuda").stream(5, seed=1)
    step = torch.zeros((), dtype=torch.int64, device="cuda")
    stream.batch(0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x, y = stream.gather(step)
    for number in (0, 1, 2, 3, 9, 4):
        stream.prepare(number)
        step.fill_(number)
        graph.replay()
        want_x, want_y = expected.batch(number)
        torch.testing.assert_close(x.cpu(), want_x, rtol=3e-7, atol=0)
        assert torch.equal(y.cpu(), want_y)
