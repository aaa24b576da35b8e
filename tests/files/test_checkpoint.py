"""Checkpoints: exact round trips, what is refused, and which ones are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hypermask_fast.errors import CheckpointError, TrainingError
from hypermask_fast.files import checkpoint as cp

_DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
]


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _filled(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    if dtype == torch.bool:
        return torch.randint(0, 2, (3, 7), generator=generator).bool()
    if dtype.is_floating_point or dtype.is_complex:
        base = torch.float32 if dtype.is_complex else dtype
        info = torch.finfo(base)
        extremes = [0.0, -0.0, info.max, info.min, info.tiny, -info.tiny, info.eps]
        edge = torch.tensor(extremes, dtype=torch.float64)
        edge = torch.cat([edge, torch.randn(7, generator=generator)]).to(base)
        return torch.complex(edge, edge.flip(0)) if dtype.is_complex else edge.reshape(2, 7)
    raw = torch.randint(0, 256, (21 * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(3, 7)


@pytest.mark.parametrize("dtype", [pytest.param(d, id=str(d)[6:]) for d in _DTYPES])
def test_round_trip_keeps_every_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = _filled(dtype)
    tensors = {
        "matrix": saved,
        "scalar": saved.reshape(-1)[3],
        "empty": saved.new_empty(0, 5),
        "odd": torch.zeros(1, dtype=torch.uint8),
    }
    loaded = cp.load(cp.save(tmp_path, 7, tensors, {}))
    assert loaded.step == 7
    assert set(loaded.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded.tensors[name].dtype == dtype or name == "odd"
        assert loaded.tensors[name].shape == tensor.shape
        assert _bytes(loaded.tensors[name]) == _bytes(tensor), name


def test_file_is_read_alike_by_the_safetensors_library(tmp_path: Path) -> None:
    tensors = {str(dtype): _filled(dtype) for dtype in _DTYPES}
    path = cp.save(tmp_path, 1, tensors, {})
    read = safetensors.torch.load_file(path / "tensors.safetensors")
    assert {name: _bytes(t) for name, t in read.items()} == {
        name: _bytes(t) for name, t in tensors.items()
    }


def test_tensors_are_aligned_in_the_file(tmp_path: Path) -> None:
    tensors = {f"{i}{dtype}": _filled(dtype)[:1] for i, dtype in enumerate(reversed(_DTYPES))}
    data = (cp.save(tmp_path, 1, tensors, {}) / "tensors.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for name, tensor in tensors.items():
        assert (start + header[name]["data_offsets"][0]) % tensor.element_size() == 0, name


def test_views_shared_storage_parameters_and_names(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "base": base,
        "same": base,
        "": base.t(),
        'a/b.c\n"quoted" \\ \u00e9 \U0001f600': base[1:3, ::2],
        "overlap": base.reshape(-1)[5:17],
        "expanded": base[0, 3].expand(2, 3),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "conjugate": torch.tensor([1 + 2j, -0.5j]).conj(),
    }
    loaded = cp.load(cp.save(tmp_path, 0, tensors, {})).tensors
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor.detach()), name
    loaded["base"].fill_(-1)
    assert torch.equal(loaded["same"], base)
    assert not any(tensor.requires_grad for tensor in loaded.values())


@pytest.mark.parametrize("size", [8 * 2**20 - 4, 8 * 2**20, 8 * 2**20 + 4, 17 * 2**20])
def test_tensors_of_several_blocks(tmp_path: Path, size: int) -> None:
    tensor = torch.arange(size // 4, dtype=torch.int32)
    assert torch.equal(cp.load(cp.save(tmp_path, 1, {"x": tensor}, {})).tensors["x"], tensor)


def test_no_tensors_and_a_nested_state(tmp_path: Path) -> None:
    state = {
        "epoch": 3,
        "big": 2**100,
        "lr": 0.1,
        "task": None,
        "shapes": (2, [3]),
        "é": {"a": True},
    }
    loaded = cp.load(cp.save(tmp_path / "new" / "folder", 12, {}, state))
    assert loaded.state == {**state, "shapes": [2, [3]]}
    assert loaded.tensors == {}


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        pytest.param(
            {"a": {"b": [float("nan")]}}, ValueError, r"state\['a'\]\['b'\]\[0\] is nan", id="nan"
        ),
        pytest.param(
            {"a": {1: 2}}, TypeError, r"state\['a'\] has the key 1 of type int", id="int-key"
        ),
        pytest.param({"x": torch.ones(1)}, TypeError, r"state\['x'\] has type Tensor", id="tensor"),
    ],
)
def test_state_that_json_would_alter_is_refused(
    tmp_path: Path, state: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cp.save(tmp_path, 1, {}, state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        pytest.param("__metadata__", torch.ones(1), id="reserved-name"),
        pytest.param("\ud800", torch.ones(1), id="surrogate"),
        pytest.param("x", torch.eye(2).to_sparse(), id="sparse"),
        pytest.param("x", torch.ones(1, device="meta"), id="meta"),
        pytest.param("x", torch.ones(1, dtype=torch.complex128), id="dtype"),
    ],
)
def test_tensor_that_the_format_cannot_hold_is_refused(
    tmp_path: Path, name: str, tensor: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match="tensor"):
        cp.save(tmp_path, 1, {name: tensor}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "keep"), [pytest.param(-1, 2, id="step"), pytest.param(1, 0, id="keep")]
)
def test_arguments_out_of_range(tmp_path: Path, step: int, keep: int) -> None:
    with pytest.raises(ValueError, match=f"step is {step} and keep is {keep}"):
        cp.save(tmp_path, step, {}, {}, keep=keep)


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(d, id=str(d)[6:])
        for d in _DTYPES
        if (d.is_floating_point or d.is_complex) and d != torch.float8_e4m3fn  # it has no infinity
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_tensor_stops_the_save(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    cp.save(tmp_path, 1, {"ok": torch.ones(2)}, {})
    before = sorted(tmp_path.rglob("*"))
    values = torch.zeros(1000)
    values[[0, 517, 999]] = value
    bad = values.to(dtype)
    with pytest.raises(
        TrainingError, match=r"tensor 'bad' has 3 non-finite values of 1000 at step 2"
    ):
        cp.save(tmp_path, 2, {"ok": torch.ones(2), "bad": bad, "i": torch.ones(2).int()}, {})
    assert sorted(tmp_path.rglob("*")) == before
    assert cp.load_latest(tmp_path).step == 1


def test_nonfinite_message_counts_the_other_tensors(tmp_path: Path) -> None:
    bad = torch.tensor([1.0, float("nan")])
    with pytest.raises(TrainingError, match=r"'a' has 1 .* \(and 1 other tensors have some\)"):
        cp.save(tmp_path, 2, {"ok": bad[:1], "a": bad, "b": bad}, {})


@pytest.mark.parametrize(
    ("keep", "left"), [pytest.param(1, [50], id="1"), pytest.param(2, [40, 50], id="2"),
                       pytest.param(9, [10, 20, 30, 40, 50], id="more")],
)  # fmt: skip
def test_keep(tmp_path: Path, keep: int, left: list[int]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for step in (10, 20, 30, 40, 50):
        path = cp.save(tmp_path, step, {"x": torch.tensor(step)}, {}, keep=keep)
        assert path == tmp_path / f"step-{step:09d}" == cp.latest(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt"] + [
        f"step-{step:09d}" for step in left
    ]
    assert [int(cp.load(p).tensors["x"]) for p in sorted(tmp_path.glob("step-*"))] == left


def test_steps_of_ten_digits_are_newer(tmp_path: Path) -> None:
    for step in (999_999_999, 1_000_000_000):
        cp.save(tmp_path, step, {}, {})
    assert cp.load_latest(tmp_path).step == 1_000_000_000


def test_the_same_step_is_replaced_and_an_earlier_one_refused(tmp_path: Path) -> None:
    cp.save(tmp_path, 5, {"x": torch.tensor(1)}, {})
    cp.save(tmp_path, 5, {"x": torch.tensor(2)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000005"]
    with pytest.raises(CheckpointError, match=r"step-000000005 is later than step 4.*move it away"):
        cp.save(tmp_path, 4, {"x": torch.tensor(3)}, {})
    assert int(cp.load_latest(tmp_path).tensors["x"]) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_on_the_gpu(tmp_path: Path) -> None:
    tensors = {
        "x": torch.randn(3_000_001, device="cuda"),
        "t": torch.randn(50, 70, device="cuda").t(),
        "n": torch.tensor(3, device="cuda"),
        "b": torch.randn(9, device="cuda", dtype=torch.bfloat16),
    }
    path = cp.save(tmp_path, 1, tensors, {})
    for device in ("cpu", "cuda"):
        loaded = cp.load(path, device=device).tensors
        for name, tensor in tensors.items():
            assert loaded[name].device.type == device
            assert torch.equal(loaded[name].cpu(), tensor.cpu())
    with pytest.raises(TrainingError, match="'x' has 1 non-finite"):
        cp.save(tmp_path, 2, {"x": tensors["x"].index_fill(0, tensors["n"], float("nan"))}, {})
