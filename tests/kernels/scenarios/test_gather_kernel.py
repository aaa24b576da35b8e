"""Batches of a stream by the kernel: the bytes of the plain way, scaled as a GPU does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast.scenarios import ImageDataset, ImageSet, Preprocess, gather, split
from hypermask_fast.scenarios.stream import BatchStream
from tests.support.kernel_checks import poisoned

pytest.importorskip("triton")

from hypermask_fast.kernels import tuning

SHAPE = (3, 5, 4)


def permutation(pad: int) -> Tensor:
    return torch.randperm(3 * (5 + 2 * pad) * (4 + 2 * pad))


def moved(pad: int) -> Tensor:
    places = torch.randint(-1, 3 * (5 + 2 * pad) * (4 + 2 * pad), (permutation(pad).numel(),))
    places[:2] = -1
    return places


def stream(batch_size: int, n: int = 7, **options: Any) -> BatchStream:
    images = ImageSet(torch.randint(0, 256, (n, *SHAPE)).to(torch.uint8), torch.arange(n) % 3)
    made = split(ImageDataset("made", images, images, tuple("abc")))[0]
    return BatchStream(made.train, Preprocess(**options), batch_size, seed=2, task_id=1)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(dict, id="plain"),
        pytest.param(lambda: {"pad": 2}, id="pad"),
        pytest.param(lambda: {"crop": 2}, id="crop"),
        pytest.param(lambda: {"flip": True}, id="flip"),
        pytest.param(lambda: {"permutation": permutation(0)}, id="permutation"),
        pytest.param(lambda: {"source": moved(0)}, id="moved"),
        pytest.param(
            lambda: {
                name: torch.stack((places, places.flip(0)), 1)[:, 0]
                for name, places in (("permutation", permutation(0)), ("source", moved(0)))
            },
            id="apart",
        ),
        pytest.param(
            lambda: {
                "pad": 1,
                "crop": 3,
                "flip": True,
                "permutation": permutation(1),
                "source": moved(1),
            },
            id="all",
        ),
    ],
)
@pytest.mark.parametrize("is_tensor", [False, True])
def test_a_batch_has_the_bytes_of_the_plain_way(
    options: Callable[[], dict[str, Any]], is_tensor: bool
) -> None:
    made = stream(5, **options())
    with tuning.forced("batch", {"BLOCK": 32, "num_warps": 4}), poisoned():
        for number in (1, 9):
            x, y = made.batch(number)
            place: int | Tensor = torch.tensor(number) if is_tensor else number
            source = made._split.source
            assert isinstance(source, ImageSet)
            found = gather.batch(source, made._preprocess, made._table, place, 5)
            assert torch.equal(found[0], (x * 255).round() * (torch.ones(()) / 255))
            assert torch.equal(found[1], y)
            assert found[0].is_contiguous()


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_pixels_are_rounded_once_for_each_operation(channels: int) -> None:
    mean, std = [0.48, 0.45, 0.4][:channels], [0.23, 0.22, 0.26][:channels]
    made = stream(4, mean=mean, std=std, permutation=permutation(0))
    plain = stream(4, permutation=made._preprocess.permutation)
    plain._split = made._split
    source = made._split.source
    assert isinstance(source, ImageSet)
    made.prepare(0)
    scaled = (plain.batch(0)[0] * 255).round() * (torch.ones(()) / 255)
    with poisoned():
        found, _ = gather.batch(source, made._preprocess, made._table, 0, 4)
    assert made._preprocess.mean is not None
    assert made._preprocess.std is not None
    expected = (scaled - made._preprocess.mean) / made._preprocess.std
    assert torch.equal(found, expected)


def test_what_does_not_fit_is_left_to_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "_on_gpu", lambda images: True)
    source = stream(2)._split.source
    assert gather.runs(source, Preprocess(permutation=permutation(0), mean=[0.1], std=[1]))
    assert not gather.runs(source, Preprocess(permutation=permutation(1)))
    assert not gather.runs(source, Preprocess(source=moved(1)))
    assert not gather.runs(source, Preprocess(mean=[0.1, 0.2], std=[1, 1]))


@pytest.mark.gpu
def test_on_a_gpu_bits_are_those_of_pytorch(device: torch.device) -> None:
    options = {"crop": 2, "flip": True, "mean": [0.48, 0.45, 0.4], "std": [0.23, 0.22, 0.26]}
    made = stream(6, **options)
    moved_split = made._split.to(device)
    on_gpu = BatchStream(moved_split, made._preprocess.to(device), 6, seed=2, task_id=1)
    for number in range(4):
        x, y = on_gpu.batch(number)
        rows = on_gpu._rows(number)
        plain = on_gpu._preprocessed(moved_split.source.take(rows[:, 0]), rows)
        assert torch.equal(x, plain[0])
        assert torch.equal(y, plain[1])
