"""A process that has not looked for the native library yet, and a compiler that is a script."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from hypermask_fast.native import library as native
from tests.support.native_cases import Compiler


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process that has not yet looked for the library, and its empty cache."""
    for name in ("CXX", "HYPERMASK_FAST_NATIVE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "made" / "cache"
    monkeypatch.setenv("HYPERMASK_FAST_CACHE", str(folder))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(native, "_loaded", None)
    monkeypatch.setattr(native, "_warned", False)
    return folder


@pytest.fixture(scope="module")
def built() -> Path:
    """The library that this machine's compiler makes."""
    loaded = native.load()
    if loaded is None:
        status = native.status()
        assert "no C++ compiler" in status or "HYPERMASK_FAST_NATIVE=0" in status, status
        pytest.skip(status)
    return Path(loaded._name)


@pytest.fixture
def compiler(built: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """Makes $CXX a script that logs its calls and delivers the library that exists already."""

    def make(version: str = "fake 1.0", before: str = "", result: Path = built) -> Path:
        script, log = tmp_path / "fake-cxx", tmp_path / "calls"
        script.write_text(
            f"""#!/bin/sh
            if [ "$1" = --version ]; then echo "{version}"; exit; fi
            echo call >> "{log}"
            {before}
            while [ "$1" != -o ]; do shift; done
            cat "{result}" > "$2"
            """
        )
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return log

    return make
