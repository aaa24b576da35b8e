"""Examples that do not fit on a device give the same batches from the host."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import hypermask_fast as hmf
from hypermask_fast.errors import ConfigError
from hypermask_fast.scenarios import ImageSet, Split, Task, TensorSet, sources
from hypermask_fast.scenarios.host import HostStream
from hypermask_fast.scenarios.sources import HostSet, fits
from tests.support.scenario_cases import make_dataset
from tests.support.scenario_cases import make_task as make_images

CPU = torch.device("cpu")


def on_host(task: Task) -> Task:
    """The task as it is where nothing fits, with the CPU as the device."""
    held = {id(s): HostSet(s, CPU) for s in (task.train.source, task.test.source)}

    def moved(split: Split) -> Split:
        return Split(held.get(id(split.source), split.source), split.index, split.labels)

    return replace(
        task, train=moved(task.train), validation=moved(task.validation), test=moved(task.test)
    )


@pytest.mark.parametrize(("n", "batch_size"), [(13, 4), (3, 11), (12, 4)])
def test_batches_are_those_of_a_resident_task(n: int, batch_size: int) -> None:
    task = make_images(n, shape=(3, 6, 6), crop=2, flip=True)
    resident = task.stream(batch_size, seed=1, task_id=4)
    stream = on_host(task).stream(batch_size, seed=1, task_id=4)
    assert isinstance(stream, HostStream)
    assert not stream.is_resident
    assert stream.steps_per_epoch == resident.steps_per_epoch
    # In order, again, ahead and back.
    for step in [*range(12), 11, 11, 3, 4, 19, 0, 1, 2]:
        for value, expected in zip(stream.batch(step), resident.batch(step), strict=True):
            assert torch.equal(value, expected), step
    with pytest.raises(ConfigError, match="step"):
        stream.batch(-1)


def test_evaluation_reads_each_batch_once_and_in_order() -> None:
    task = hmf.scenarios.split(make_dataset(), 3, validation=6)[0]
    host = on_host(task)
    for part in ("train", "validation", "test"):
        for size in (7, 1000):
            found = list(host.evaluation_batches(part, size))
            expected = list(task.evaluation_batches(part, size))
            assert len(found) == len(expected)
            for ours, theirs in zip(found, expected, strict=True):
                assert all(map(torch.equal, ours, theirs))
    # One that is left in the middle waits for nothing.
    next(host.evaluation_batches("train", 2))
    assert host.has_same_examples(host)
    assert host.has_same_examples(task)


def test_training_has_the_same_bits_and_continues() -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(60, 4), torch.arange(60) % 3
    pair = (inputs, labels)
    task = hmf.scenarios.make_task("own", pair, pair, validation=9)
    ends = []
    for given in (task, on_host(task)):
        torch.manual_seed(1)
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        learner = hmf.HyperMask(net, embedding_dim=4, hidden=(8,))
        trainer = hmf.Trainer(learner, lr=1e-2, batch_size=16, steps=20, progress=False)
        trainer.fit(given)
        assert trainer.status()["graph"].startswith("no")
        ends.append((learner.state_dict(), trainer.accuracy))
    for name, value in ends[0][0].items():
        assert torch.equal(value, ends[1][0][name]), name
    assert (ends[0][1] == ends[1][1])[-1].all()


def test_what_takes_more_than_a_share_of_the_memory_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def free(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return 1000, 4000

    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    cuda = torch.device("cuda:1")
    assert fits(500, cuda)
    assert not fits(501, cuda)
    assert asked == [cuda, cuda]
    assert fits(2**60, CPU)


@pytest.mark.parametrize("kind", [TensorSet, ImageSet])
def test_sets_move_where_they_fit(
    kind: type[TensorSet | ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = kind(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5))
    assert type(held.to("meta")) is kind
    other = kind(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5))
    module = sources if kind is TensorSet else __import__(kind.__module__, fromlist=["fits"])
    monkeypatch.setattr(module, "fits", lambda size, device: size < 20)
    moved = other.to("meta")
    assert isinstance(moved, HostSet)
    assert (moved.device.type, moved.labels.device.type) == ("meta", "meta")
    assert (moved.shape, len(moved)) == ((1, 2, 2), 5)
    assert moved.to("cpu") is other
    assert other.to("meta") is moved
