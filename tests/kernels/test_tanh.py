"""|tanh z| as it is compiled: without branches, with the bits of the library's tanh."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.ptx import instructions, run

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="triton is not installed"
    ),
    pytest.mark.xdist_group("tanh"),
]

INFINITY = 0x7F800000
NAN = 0x7FC00000
Programs = dict[str, list[tuple[str, ...]]]


@pytest.fixture(scope="module")
def programs() -> Programs:
    """The kernels' own way, and the library's."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    worker = Path(__file__).with_name("tanh_ptx.py")
    command = [sys.executable, str(worker)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return {name: instructions(ptx) for name, ptx in json.loads(done.stdout).items()}


def bits(numbers: np.ndarray) -> np.ndarray:
    return numbers.view(np.uint32)


def compare(programs: Programs, magnitudes: np.ndarray) -> None:
    """Compare both ways for numbers of either sign, given the bits of their magnitudes."""
    with np.errstate(all="ignore"):
        for sign in (0, 0x80000000):
            z = (magnitudes | np.uint32(sign)).view(np.float32)
            ours, theirs = (bits(run(programs[name], z)) for name in ("kernels", "library"))
            wrong = np.flatnonzero(ours != theirs)
            assert not len(wrong), (z[wrong[0]], ours[wrong[0]], theirs[wrong[0]], len(wrong))


@pytest.mark.long
def test_the_compiled_tanh_does_not_branch(programs: Programs) -> None:
    names = {name: [words[0] for words in program] for name, program in programs.items()}
    # That of newer versions does not, either.
    assert "bra" not in names["kernels"]
    # Of the same approximations, each once.
    for name in ("ex2.approx.ftz.f32", "rcp.approx.ftz.f32"):
        assert names["kernels"].count(name) == names["library"].count(name) == 1


@pytest.mark.long
def test_tanh_is_near_where_it_is_computed_exactly(programs: Programs) -> None:
    z = np.linspace(-12, 12, 10_001, dtype=np.float32)
    exact = np.abs(np.tanh(z.astype(np.float64)))
    assert np.abs(run(programs["kernels"], z) - exact).max() < 2e-7


@pytest.mark.long
def test_a_sample_has_the_bits_of_the_library(programs: Programs) -> None:
    ends = np.array([1e-4, 0.6, 9.010914, np.finfo(np.float32).tiny, 0, np.inf], dtype=np.float32)
    around = [np.arange(max(0, int(end) - 300), int(end) + 300) for end in bits(ends)]
    every = np.arange(0, INFINITY + 1, 65_537)
    magnitudes = np.concatenate([every, *around, [NAN]])
    compare(programs, magnitudes[magnitudes <= NAN].astype(np.uint32))


def chunks() -> Iterator[np.ndarray]:
    size = 1 << 15
    for start in range(0, INFINITY + 1, size):
        yield np.arange(start, min(start + size, INFINITY + 1), dtype=np.uint32)


@pytest.mark.slow
def test_every_number_has_the_bits_of_the_library(programs: Programs) -> None:
    with np.errstate(all="ignore"):
        for magnitudes in chunks():
            z = magnitudes.view(np.float32)
            ours, theirs = (run(programs[name], z) for name in ("kernels", "library"))
            assert np.array_equal(bits(ours), bits(theirs)), z[0]
