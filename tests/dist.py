"""``python -m tests.dist [PYTHON ...]``: a wheel and an sdist, installed and tried.

Each interpreter gets a new environment, but for one that is an environment's own and may have the
dependencies already. There the wheel is installed, and the commands run in an empty folder, with an
empty cache, without this one on the path.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SMALL = ("--tasks", "2", "--steps", "60", "--mlp-hidden", "16", "--device", "cpu")
_INSTALLED = """
import sys, hypermask_fast, hypermask_fast.kernels.ops
for module in (hypermask_fast, hypermask_fast.kernels.ops):
    assert module.__file__.startswith(sys.prefix), module.__file__
print(hypermask_fast.__version__)
"""


def build(folder: Path) -> tuple[Path, Path]:
    """Build an sdist, and a wheel from it."""
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, ROOT],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def check_contents(wheel: Path, sdist: Path) -> None:
    """Check that what the package and its tests need is there."""
    names = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    for folder, place in {"hypermask_fast": "", "kernels": "kernels/"}.items():
        for path in (ROOT / folder).rglob("*"):
            name = f"hypermask_fast/{place}{path.relative_to(ROOT / folder)}"
            if path.is_file() and path.suffix not in {".pyc", ".so"}:
                assert name in names, f"{name} is not in the wheel"
    assert not any(name.startswith(("tests", "benchmarks", "kernels")) for name in names)
    for folder in ("tests", "benchmarks", "docs", "kernels"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in {".pyc", ".so"}:
                assert str(path.relative_to(ROOT)) in sources, f"{path} is not in the sdist"
    assert {"CHANGELOG.md", "CITATION.cff", "Makefile", "constraints.txt", "mkdocs.yml"} <= sources


def environment(python: str, folder: Path) -> Path:
    """Return the folder of commands of an environment: the interpreter's own, or a new one."""
    own = "import sys; print(sys.prefix != sys.base_prefix)"
    if subprocess.check_output([python, "-c", own], text=True).strip() == "True":
        return Path(python).parent
    made = folder / "environment"
    subprocess.run([python, "-m", "venv", made], check=True)
    return made / "bin"


def try_wheel(commands: Path, wheel: Path, folder: Path) -> None:
    """Install a wheel, and train, stop, resume, evaluate and export with it."""
    install = [commands / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    constraints = ROOT / "constraints.txt"
    subprocess.run([*install, "-c", constraints, wheel], check=True)
    subprocess.run([*install, "--no-deps", "--force-reinstall", wheel], check=True)
    work, cache = folder / "work", folder / "cache"
    work.mkdir()
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean |= {"HYPERMASK_FAST_CACHE": str(cache), "OMP_NUM_THREADS": "1"}

    def said(*words: object) -> str:
        done = subprocess.run(
            [str(word) for word in words], cwd=work, env=clean, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    version = said(commands / "python", "-c", _INSTALLED).strip()
    assert f"-{version}-" in wheel.name
    hypermask = commands / "hypermask"
    doctor = said(hypermask, "doctor")
    assert "failed" not in doctor, doctor
    assert re.search(r"head passes +native", doctor), doctor
    assert list(cache.glob("*.so")), "nothing was compiled"

    said(hypermask, "train", *_SMALL, "--out", "whole")
    stopped = [hypermask, "train", *_SMALL, "--checkpoint-every", "0", "--out", "stopped"]
    with subprocess.Popen(stopped, cwd=work, env=clean, stderr=subprocess.DEVNULL) as process:
        while not list(work.glob("stopped/checkpoints/*/state.json")) and process.poll() is None:
            time.sleep(0.05)
        process.terminate()
    said(hypermask, "resume", "stopped")
    whole, resumed = ((work / run / "accuracy.csv").read_text() for run in ("whole", "stopped"))
    assert whole == resumed
    assert "mean" in said(hypermask, "eval", "stopped")
    said(hypermask, "export", "stopped", "--task", "1", "--format", "safetensors", "--out", "task")
    assert (work / "task").stat().st_size > 0


def main() -> int:
    """Build, check and try with the given interpreters, or with that which runs this."""
    with tempfile.TemporaryDirectory(prefix="dist-") as name:
        folder = Path(name)
        wheel, sdist = build(folder)
        check_contents(wheel, sdist)
        for number, python in enumerate(sys.argv[1:] or [sys.executable]):
            place = folder / str(number)
            place.mkdir()
            try_wheel(environment(python, place), wheel, place)
            print(f"{wheel.name} works with {python}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
