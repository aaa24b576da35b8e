"""The choice of what makes the masks of a network."""

from __future__ import annotations

import pytest
import torch

from hypermask_fast.backends import choice, proof
from hypermask_fast.errors import ConfigError
from hypermask_fast.functional import backend
from hypermask_fast.masks import cpu, cuda, plain
from hypermask_fast.masks.types import MaskRequest
from hypermask_fast.masks.weights import mask_weights
from hypermask_fast.native import library


def request(dtype: torch.dtype = torch.float32, sparsity: float = 30.0) -> MaskRequest:
    weights = [torch.randn(7, 5, dtype=dtype), torch.randn(3, dtype=dtype)]
    return MaskRequest(weights, torch.randn(38, dtype=dtype), sparsity, [True, False])


def test_a_sparsity_outside_of_percent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sparsity is 101; give a percentage in \[0, 100\]"):
        mask_weights(request(sparsity=101))


def test_a_forced_kernel_that_cannot_run_is_refused() -> None:
    with backend("triton"), pytest.raises(ConfigError, match="mask_weights runs on CUDA tensors"):
        mask_weights(request())


@pytest.mark.parametrize(
    ("dtype", "name", "engine"),
    [
        pytest.param(torch.float32, "auto", "cpu", id="float32"),
        pytest.param(torch.float64, "auto", "cpu", id="float64"),
        pytest.param(torch.bfloat16, "auto", "plain", id="bfloat16"),
        pytest.param(torch.float32, "reference", "plain", id="reference"),
    ],
)
def test_the_engine_on_a_cpu(
    dtype: torch.dtype, name: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "cpu" and library.load() is None:
        pytest.skip(library.status())
    taken: list[str] = []
    for module in (cpu, cuda, plain):
        own, label = module.mask_weights, module.__name__.rpartition(".")[2]
        monkeypatch.setattr(
            module,
            "mask_weights",
            lambda request, own=own, label=label: taken.append(label) or own(request),
        )
    with backend(name):
        mask_weights(request(dtype))
    assert taken == [engine]


def test_the_kernels_where_they_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_why_no_kernel", lambda op, tensor: None)
    monkeypatch.setattr(proof, "why_left_out", lambda op, device, *, forced: None)
    monkeypatch.setattr(cuda, "mask_weights", lambda request: "kernels")
    assert mask_weights(request()) == "kernels"


@pytest.mark.parametrize("sparsity", [0.0, 30.0, torch.tensor(30.0)])
def test_the_engines_agree(sparsity: float) -> None:
    wanted = request(torch.float64, sparsity)._replace(previous=torch.randn(38).double())
    engines = [plain.mask_weights, cuda.mask_weights]
    engines += [cpu.mask_weights] if cpu.runs(wanted) else []
    expected, *others = [engine(wanted) for engine in engines]
    for found in others:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert found.products[1] is wanted.weights[1]
