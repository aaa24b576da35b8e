"""The training stream: orders, draws and what it depends on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hypermask_fast.counters import AUGMENT, ORDER
from hypermask_fast.scenarios import BatchStream
from tests.support.counter_reference import hash_reference, randint_reference
from tests.support.scenario_cases import make_task, transform_reference


def ids(x: torch.Tensor) -> list[int]:
    return (x[:, 0, 0, 0] * 255).round().int().tolist()


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
    images = task.train.source.images.numpy()
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
    with pytest.raises(ValueError, match="batch_size=0"):
        BatchStream(task.train, task.train_preprocess, 0)
    empty = replace(task.train, index=task.train.index[:0], labels=task.train.labels[:0])
    with pytest.raises(ValueError, match="the split has no training examples"):
        BatchStream(empty, task.train_preprocess, 2)
    with pytest.raises(ValueError, match=r"task 'made a\.\.c' has no training examples"):
        replace(task, train=empty).stream(2)
    with pytest.raises(ValueError, match="step=-1"):
        task.stream(2).batch(-1)


@pytest.mark.gpu
def test_cuda_graph_replays_the_stream():
    task = make_task(13, shape=(3, 6, 6), crop=2, flip=True)
    expected = task.stream(5, seed=1)
    stream = task.to("cuda").stream(5, seed=1)
    step = torch.zeros((), dtype=torch.int64, device="cuda")
    stream.prepare(0)
    stream.gather(step)  # no kernel can be loaded in a capture
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
