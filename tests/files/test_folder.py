"""Run folder: what it accepts and its lock."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hypermask_fast.errors import ConfigError
from hypermask_fast.files import folder as run_folder
from hypermask_fast.files.folder import RunFolder

_ROOT = Path(__file__).parents[2]


def test_create_then_open(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a"
    with RunFolder.create(path, "lr = 0.1  # é\n") as run:
        assert run.config_path.read_text(encoding="utf-8") == "lr = 0.1  # é\n"
    with RunFolder.open(path) as run:
        files = [
            run.config_path,
            run.checkpoints,
            run.metrics_path,
            run.accuracy_npz,
            run.accuracy_csv,
            run.accuracy_svg,
        ]
    assert [str(file.relative_to(path)) for file in files] == [
        "config.toml",
        "checkpoints",
        "metrics.jsonl",
        "accuracy.npz",
        "accuracy.csv",
        "accuracy.svg",
    ]
    assert sorted(p.name for p in path.iterdir()) == [".lock", "config.toml"]


def test_constructor_touches_nothing(tmp_path: Path) -> None:
    RunFolder(tmp_path / "a").close()
    assert list(tmp_path.iterdir()) == []


def test_create_over_what_a_killed_create_left(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1")
    (tmp_path / ".tmp-config.toml-1").write_text("half")
    RunFolder.create(tmp_path, "a = 1").close()
    assert (tmp_path / "config.toml").read_text() == "a = 1"


def _stuck(root: Path) -> Path:
    """What a run leaves that failed, or was killed, before its first checkpoint."""
    RunFolder.create(root, "a = 1").close()
    (root / "metrics.jsonl").write_text("{}\n")
    (root / "checkpoints/.tmp-step-000000001").mkdir(parents=True)
    return root


def test_create_in_place_of_a_run_that_never_began(tmp_path: Path) -> None:
    RunFolder.create(_stuck(tmp_path), "a = 2").close()
    assert (tmp_path / "config.toml").read_text() == "a = 2"


@pytest.mark.parametrize("name", ["checkpoints/step-000000001", "manifest.json", "notes.txt"])
def test_a_run_that_began_and_foreign_files_are_kept(tmp_path: Path, name: str) -> None:
    _stuck(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="holds a run already"):
        RunFolder.create(tmp_path, "a = 2")
    assert (tmp_path / "config.toml").read_text() == "a = 1"


def test_a_run_that_is_about_to_begin_is_not_replaced(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "a = 1"), pytest.raises(ConfigError, match="in use by"):
        RunFolder.create(tmp_path, "a = 2")
    (tmp_path / ".lock").write_text("of another program")
    with pytest.raises(ConfigError, match="holds a run already"):
        RunFolder.create(tmp_path, "a = 2")
    assert (tmp_path / "config.toml").read_text() == "a = 1"


def _with(*names: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        for name in names:
            (root / name).write_text("")
        return root

    return make


def _under_a_file(root: Path) -> Path:
    (root / "file").write_text("")
    return root / "file" / "run"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            _with("config.toml"),
            r"holds a run already; continue it with `hypermask resume .*` or choose another --out",
            id="a-run",
        ),
        pytest.param(_with("thesis.tex"), "not empty, it holds 'thesis.tex'", id="foreign"),
        pytest.param(_under_a_file, "Not a directory", id="parent-is-a-file"),
        pytest.param(
            lambda root: _under_a_file(root).parent, "Not a directory", id="path-is-a-file"
        ),
    ],
)
def test_create_refuses(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=message) as caught:
        RunFolder.create(path, "")
    assert str(path) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda root: root / "absent", "it does not exist", id="absent"),
        pytest.param(_with(".lock"), "it is empty", id="empty"),
        pytest.param(lambda root: _under_a_file(root).parent, "it is a file", id="file"),
        pytest.param(_with("b.txt", "a.txt"), "it holds a.txt, b.txt, expected a config", id="few"),
        pytest.param(_with(*"abcdefg"), "it holds a, b, c, d, e and 2 more", id="many"),
    ],
)
def test_open_refuses(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunFolder.open(make(tmp_path))


def test_open_of_a_folder_inside_a_run_names_the_run(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "").close()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError) as caught:
        RunFolder.open(tmp_path / "checkpoints")
    assert f"(did you mean {str(tmp_path)!r}?)" in str(caught.value)


def test_lock_within_one_process(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "")
    with pytest.raises(ConfigError, match=f"is in use by process {os.getpid()};"):
        RunFolder.open(tmp_path)
    RunFolder.open(tmp_path, lock=False).close()
    with pytest.raises(ConfigError, match="in use"):
        RunFolder.open(tmp_path)
    run.close()
    run.close()
    RunFolder.open(tmp_path).close()


_HOLDER = """
import os, sys, time
from hypermask_fast.files.folder import RunFolder

run = RunFolder.open(sys.argv[1])
if os.fork() == 0:
    run.close()
    print(os.getppid(), flush=True)
    time.sleep(30)
    os._exit(0)
time.sleep(30)
"""


def test_lock_of_another_process_ends_with_kill_9(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "").close()
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        assert pid == holder.pid
        with pytest.raises(ConfigError, match=f"is in use by process {pid}; wait until it ends"):
            RunFolder.open(tmp_path)
        holder.kill()  # its forked child lives on, as a data loader worker would
        holder.wait()
        RunFolder.open(tmp_path).close()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()


def test_platform_without_locks_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_fcntl", None)
    with pytest.warns(RuntimeWarning, match="no file locks"):
        RunFolder.create(tmp_path / "a", "x = 1").close()
    assert (tmp_path / "a" / "config.toml").read_text() == "x = 1"


def test_disk_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunFolder.create(tmp_path, "").close()

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_folder._fcntl, "flock", flock)
    with pytest.raises(ConfigError, match=r"cannot lock .*No locks available"):
        RunFolder.open(tmp_path)
