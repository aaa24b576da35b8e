"""A comparison that several modules look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypermask_fast import cli
from tests.support.comparison_cases import words


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "whole"
    assert cli.main(words(path)) == 0
    return path
