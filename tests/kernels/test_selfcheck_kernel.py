"""The self-check of the kernels: what is right passes, and each planted fault is found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch

from hypermask_fast.backends import choice, proof
from hypermask_fast.kernels.selfcheck import run
from hypermask_fast.kernels.selfcheck.case import Case, Draw, fault
from hypermask_fast.kernels.selfcheck.rounded import exact, matmul
from tests.support.planted import choose_matrix_cores, launched_by, plant, repeated

FOLDER = Path(run.__file__).parents[1]
_JIT = re.compile(r"@triton\.jit(?:\(.*\))?\ndef (\w+_kernel)\(")


def kernels() -> list[str]:
    """The functions that are launched, from the sources."""
    sources = (path.read_text() for path in sorted(FOLDER.rglob("*.py")))
    return [name for source in sources for name in _JIT.findall(source)]


@cache
def checks() -> Mapping[tuple[str, bool], set[str]]:
    """What is launched, by check and whether matrix cores read shared memory."""
    cores = (True, False)
    return {(name, has): launched_by(name, has) for name in run.KERNELS for has in cores}


def checked(device: torch.device, name: str, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(run, "KERNELS", {name: run.KERNELS[name]})
    capture = repeated if device.type == "cpu" else run.captured
    return run.check(device, capture=capture)[name]


@pytest.mark.parametrize("name", run.KERNELS)
def test_kernels_pass(name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    differs = checks()[name, True] != checks()[name, False]
    assert checked(device, name, monkeypatch) == ""
    if device.type == "cpu" and differs:
        choose_matrix_cores(monkeypatch, False)
        assert checked(device, name, monkeypatch) == ""


def test_every_kernel_is_checked() -> None:
    assert set().union(*checks().values()) == set(kernels())


def test_every_check_decides_on_an_operation() -> None:
    assert {name for names in proof.NEEDED.values() for name in names} == set(run.KERNELS)
    assert proof.NEEDED.keys() == choice._KERNELS.keys()


@pytest.mark.parametrize("kind", ["wrong", "compile"])
@pytest.mark.parametrize("kernel", kernels())
def test_a_planted_fault_is_found(
    kernel: str, kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launching = [which for which, names in checks().items() if kernel in names]
    name, has_wgmma = min(launching, key=lambda which: len(checks()[which]))
    if device.type == "cpu":
        choose_matrix_cores(monkeypatch, has_wgmma)
    launches = plant(monkeypatch, kernel, kind)
    wrong = checked(device, name, monkeypatch)
    if device.type == "cuda" and not launches:
        pytest.skip("this GPU has another kernel in its place")
    assert (
        f"planted in {kernel}" in wrong
        if kind == "compile"
        else re.search(r"entries are wrong|off by|other numbers", wrong)
    ), wrong


def test_a_replay_that_gives_other_numbers_is_found(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cuda":
        pytest.skip("a graph replays without the code that would change")
    plant(monkeypatch, "_mask_logits_vector_kernel", "changing")
    wrong = checked(device, "mask_logits", monkeypatch)
    assert wrong == "the replay of a captured CUDA graph gives other numbers"


def test_products_of_a_coarser_precision_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((19, 41), (41, 35)))
    right = {"y": matmul(exact(a), exact(b))}

    def cut(x: torch.Tensor) -> torch.Tensor:
        return (x.view(torch.int32) & -0x2000).view(torch.float32)

    assert fault([a @ b], right) is None
    assert "y: off by" in (fault([cut(a) @ cut(b)], right) or "")
    assert fault([(a @ b).fill_(torch.nan)], right) is not None
    assert "y: has the shape (18, 35)" in (fault([(a @ b)[1:]], right) or "")


def test_what_fails_beside_others_is_launched_again_alone(
    device: torch.device,
) -> None:
    makes, begun = run.KERNELS["pack"], list[Draw]()

    def busy(draw: Draw) -> Case:
        begun.append(draw)
        if len(begun) == 1:
            raise OSError("another process took the file")
        return makes[0](draw)

    (launched,) = run._together(device, [busy])
    assert not isinstance(launched, str)
    assert len(begun) == 2


def test_what_ends_the_use_of_the_device_is_named(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("mask_logits", "hidden_grad", "pack")
    monkeypatch.setattr(run, "KERNELS", {name: run.KERNELS[name] for name in names})
    plant(monkeypatch, "_mask_logits_grad_kernel", "compile")
    monkeypatch.setattr(run, "_why_dead", lambda device: "an illegal memory access")
    capture = repeated if device.type == "cpu" else run.captured
    found = run.check(device, capture=capture, together=False)
    assert found["mask_logits"] == ""
    assert "planted" in found["hidden_grad"]
    assert found["pack"] == "not checked, as hidden_grad ended all use of the device"
    with pytest.raises(run.DeviceFaultError, match="HYPERMASK_FAST_BACKEND=reference does without"):
        run._together(device, run.KERNELS["pack"])
