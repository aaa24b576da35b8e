"""Captures on several devices, one after a failure, and what a captured graph points to."""

from __future__ import annotations

import weakref

import pytest
import torch

from hypermask_fast.methods.protocol import Losses
from hypermask_fast.training.graph import CudaGraphs
from tests.support import cuda_stand_ins
from tests.support.cuda_stand_ins import Cuda

GPUS = [torch.device("cuda", index) for index in range(2)]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return cuda_stand_ins.install(monkeypatch)


def losses() -> Losses:
    value = torch.zeros(())
    return Losses(value, value, value, {})


def test_each_learner_is_captured_on_its_own_device(cuda: Cuda) -> None:
    graphs = CudaGraphs()
    for number, device in enumerate((GPUS[1], GPUS[0], GPUS[1])):

        def step(device: torch.device = device, number: int = number) -> Losses:
            cuda.launch(device, number)
            return losses()

        with graphs.warming_up(device):
            assert cuda.current_stream().device == device
        captured = graphs.capture(step, device)
        assert cuda.ran == []
        captured.replay()
        assert cuda.ran == [(device.index, number)]
        cuda.ran.clear()
        assert cuda.device == 0


def test_what_is_warmed_up_is_waited_for_on_its_device(cuda: Cuda) -> None:
    graphs = CudaGraphs()
    for device in GPUS:
        current = cuda.current_stream(device)
        with graphs.warming_up(device):
            side = cuda.current_stream(device)
        assert side is not current
        assert side.waits == [current]
        assert current.waits == [side]
        with graphs.warming_up(device):
            assert cuda.current_stream(device) is side


@pytest.mark.parametrize("device", GPUS, ids=str)
def test_a_capture_that_failed_leaves_streams_memory_and_random_numbers_as_they_were(
    cuda: Cuda, device: torch.device
) -> None:
    before = [cuda.current_stream(each) for each in GPUS]

    def step() -> Losses:
        cuda.fail()
        return losses()

    with pytest.raises(RuntimeError, match="previous error during capture"):
        CudaGraphs().capture(step, device)
    assert [cuda.current_stream(each) for each in GPUS] == before
    assert cuda.device == 0
    assert not any(generator.captures for generator in cuda.generators)
    cuda.empty_cache()


def test_tables_that_graphs_point_to_outlive_those_of_other_networks() -> None:
    pytest.importorskip("triton")
    from hypermask_fast.kernels.masks import top_k
    from hypermask_fast.kernels.masks.blocks import blocks
    from hypermask_fast.kernels.masks.groups import groups_of

    cpu, config = torch.device("cpu"), {"BLOCK": 8}
    weights = [torch.zeros(20), torch.zeros(3)]
    captured = [
        weakref.ref(tensor)
        for tensor in (
            *blocks((20, 3), 8, cpu),
            *groups_of(weights, config)[0].table,
            top_k._on_device((7, 1), cpu),
        )
    ]
    for other in range(1, 400):
        blocks((other, 5), 8, cpu)
        groups_of([torch.empty(other)], config)
        top_k._on_device((other,), cpu)
    assert all(table() is not None for table in captured)
