"""What the passes over the head run on."""

from __future__ import annotations

import pytest

from hypermask_fast.head import tiles
from hypermask_fast.native import library


@pytest.fixture(params=["native", "pytorch"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pytorch":
        monkeypatch.setenv("HYPERMASK_FAST_NATIVE", "0")
        # Small enough for several tiles.
        monkeypatch.setitem(tiles._TILE_BYTES, "cpu", 1 << 12)
    elif library.load() is None:
        pytest.skip(library.status())
    return request.param
