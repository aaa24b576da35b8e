"""What is installed, what an import costs, and which names it gives."""

from __future__ import annotations

import ast
import json
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hypermask_fast

ROOT = Path(__file__).parents[1]


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_import_is_cheap_and_loads_nothing_heavy():
    result = _python(
        "import json, sys, time, torch\n"
        "start = time.process_time()\n"
        "import hypermask_fast\n"
        "seconds = time.process_time() - start\n"
        "heavy = {'triton', 'torchvision', 'matplotlib'} & set(sys.modules)\n"
        "print(json.dumps([seconds, sorted(heavy), torch.cuda.is_initialized()]))\n"
    )
    assert result.returncode == 0, result.stderr
    seconds, heavy, cuda = json.loads(result.stdout)
    assert seconds < 0.2
    assert heavy == []
    assert not cuda


def test_public_names_load_neither_triton_nor_torchvision_nor_cuda():
    result = _python(
        "import json, sys, torch, hypermask_fast\n"
        "for name in hypermask_fast.__all__: getattr(hypermask_fast, name)\n"
        "heavy = {'triton', 'torchvision', 'matplotlib'} & set(sys.modules)\n"
        "print(json.dumps([sorted(heavy), torch.cuda.is_initialized()]))\n"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [[], False]


@pytest.mark.parametrize("name", hypermask_fast.__all__)
def test_public_name_resolves(name):
    assert getattr(hypermask_fast, name) is not None
    assert name in dir(hypermask_fast)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(hypermask_fast.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen | {"__version__"} == set(hypermask_fast.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'MaskedLinaer'"):
        _ = hypermask_fast.MaskedLinaer


def test_kernels_cannot_be_imported_under_their_folder_name():
    result = _python("import kernels")
    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert "hypermask_fast.kernels" in result.stderr


def test_kernels_link_leads_to_the_folder():
    link = ROOT / "hypermask_fast" / "kernels"
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == (ROOT / "kernels").resolve()


def test_version_is_the_one_in_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert hypermask_fast.__version__ == project["version"]


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict:
    setuptools = pytest.importorskip("setuptools")
    seen: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: seen.update(arguments))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return seen


def test_every_package_is_installed_once(setup_arguments):
    package, kernels = ROOT / "hypermask_fast", "hypermask_fast.kernels"
    # A search does not follow the link to the kernels.
    expected = [
        ".".join((name, *init.parent.relative_to(folder).parts))
        for name, folder in (("hypermask_fast", package), (kernels, ROOT / "kernels"))
        for init in folder.rglob("__init__.py")
    ]
    assert {kernels, f"{kernels}.head"} < set(expected)
    assert sorted(setup_arguments["packages"]) == sorted(expected)
    assert setup_arguments["package_dir"] == {
        "hypermask_fast": "hypermask_fast",
        kernels: "kernels",
    }


def test_every_folder_with_modules_is_a_package():
    modules = [
        path for name in ("hypermask_fast", "kernels") for path in (ROOT / name).rglob("*.py")
    ]
    folders = {path.parent for path in modules}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_data_files_are_installed(setup_arguments):
    shipped = {
        path
        for name, patterns in setup_arguments["package_data"].items()
        for pattern in patterns
        for path in (ROOT / name.replace(".", "/")).glob(pattern)
    }
    package = ROOT / "hypermask_fast"
    files = [*package.rglob("*"), *(package / "kernels").rglob("*")]
    present = {path for path in files if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert package / "py.typed" in present
    assert present == shipped


def test_a_copy_without_the_link_to_the_kernels_gets_it(tmp_path, monkeypatch):
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hypermask_fast").mkdir()
    (tmp_path / "setup.py").write_bytes((ROOT / "setup.py").read_bytes())
    for _ in range(2):
        runpy.run_path("setup.py")
    assert (tmp_path / "hypermask_fast" / "kernels").readlink() == Path("../kernels")


def test_an_sdist_has_what_its_tests_read():
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines()]
    named = {name for kind, *names in lines if kind in {"graft", "include"} for name in names}
    assert {"tests", "benchmarks", "docs", "Makefile", "mkdocs.yml", "constraints.txt"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert {page.name for page in ROOT.glob("*.md")} <= named
