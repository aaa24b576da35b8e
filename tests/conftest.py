"""Kernels run on the GPU where there is one, and in Triton's interpreter where there is none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

# Triton reads the variable when it is first imported, and never again.
assert "triton" not in sys.modules, "triton was imported before conftest chose its interpreter"
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

# Tests that run side by side share the cores: one thread for each, and for what it starts.
SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ
if SIDE_BY_SIDE:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def _why_no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device, and torch sees none"
    if os.environ["TRITON_INTERPRET"] == "1":
        return "needs compiled kernels, and TRITON_INTERPRET=1 interprets them"
    return None


def _shares_a_fixture(item: pytest.Item) -> bool:
    """Whether a test shares a fixture, which each process would make, with others of its module."""
    info = getattr(item, "_fixtureinfo", None)
    made = [] if info is None else info.name2fixturedefs.values()
    return any(each[-1].scope == "module" for each in made)


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _why_no_gpu()
    if reason:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=reason))
    if SIDE_BY_SIDE:
        for item in items:
            if _shares_a_fixture(item) and not item.get_closest_marker("xdist_group"):
                item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
        # Else the last long one runs while the other cores have nothing left to do.
        begins_first = ("long", "xdist_group")
        items.sort(key=lambda item: not any(map(item.get_closest_marker, begins_first)))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that kernels run on in this session."""
    return torch.device("cpu" if _why_no_gpu() else "cuda")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The recorded runs and small data files beside the tests."""
    return Path(__file__).parent / "data"
