"""What a pass over the head runs on."""

from __future__ import annotations

import pytest

from hypermask_fast.head import tiles
from tests.support.pass_cases import need_library


@pytest.fixture(params=["native", "pytorch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pytorch":
        monkeypatch.setenv("HYPERMASK_FAST_NATIVE", "0")
        # Small enough for several tiles at these sizes.
        monkeypatch.setitem(tiles._TILE_BYTES, "cpu", 1 << 16)
    else:
        need_library()
    return request.param


@pytest.fixture
def compiled() -> None:
    need_library()
