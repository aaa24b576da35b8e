"""Files of other contents than the published ones."""

from __future__ import annotations

import pytest

from hypermask_fast.scenarios import files


@pytest.fixture
def unknown(monkeypatch):
    """Accept files whose md5 is not that of the published ones."""
    monkeypatch.setattr(files, "KNOWN_DIGESTS", {})
