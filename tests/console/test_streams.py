"""Standard streams that are closed, gone, full or ASCII only: the command goes on."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from hypermask_fast import cli
from hypermask_fast.files import checkpoint
from hypermask_fast.records.metrics_log import read

QUICK = ["--tasks", "2", "--steps", "5", "--mlp-hidden", "8", "--hidden", "4", "--device", "cpu"]


class Broken(io.StringIO):
    """A stream that the system refuses."""

    def __init__(self, number: int = errno.EPIPE) -> None:
        super().__init__()
        self.number = number
        self.calls = 0

    def write(self, text: str) -> int:
        self.calls += 1
        raise OSError(self.number, os.strerror(self.number))

    flush = write  # type: ignore[assignment]


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: None, id="none"),
        pytest.param(closed, id="closed"),
        pytest.param(Broken, id="reader-gone"),
    ],
)
def test_a_run_goes_on_without_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: type[Broken]
) -> None:
    monkeypatch.setattr(sys, name, make())
    out = tmp_path / "run"
    # checkpoint_every below 1 warns nothing; sparsity below 1 prints a warning on the way.
    arguments = ["--checkpoint-every", "0", "--sparsity", "0.5", "--out", str(out)]
    assert cli.main(["train", *QUICK, *arguments]) == 0
    assert (out / "accuracy.svg").exists()
    assert cli.main(["eval", str(out)]) == 0


def test_the_streams_are_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    assert cli.main(["eval", "nothing"]) == 2
    assert (sys.stdout, sys.stderr) == before


def test_a_full_disk_under_the_output_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(errno.ENOSPC))
    out = tmp_path / "run"
    assert cli.main(["train", *QUICK, "--seeds", "2", "--jobs", "1", "--out", str(out)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("hypermask: cannot print: No space left on device;")
    assert (out / "seed-1" / "accuracy.svg").exists()


def test_an_ascii_stream_takes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, buffer in buffers.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, "ascii", errors="strict"))
    out = tmp_path / "\u00e9\udcff"
    assert cli.main(["train", *QUICK, "--seeds", "2", "--jobs", "1", "--out", str(out)]) == 0
    printed = buffers["stdout"].getvalue().decode("ascii")
    assert "acc_final" in printed
    assert "results: " in printed
    assert r"\xe9\udcff" in printed
    # The package's own words need no replacement.
    assert "\\" not in printed.replace(r"\xe9\udcff", "")
    assert "\\" not in buffers["stderr"].getvalue().decode("ascii")
    assert "step 5/5" in buffers["stderr"].getvalue().decode("ascii")


def start(out: Path, redirection: str = "", **options: object) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "hypermask_fast", "train", *QUICK, "--checkpoint-every", "0"]
    words += ["--steps", "400", "--tasks", "1", "--out", str(out)]
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, **options)  # type: ignore[call-overload]


@pytest.mark.long
def test_closed_descriptors_are_not_taken_by_the_files_of_a_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert start(out, "0<&- 1>&- 2>&-").wait() == 0
    assert read(out / "metrics.jsonl")
    assert (out / "accuracy.svg").exists()


@pytest.mark.long
def test_a_pipe_whose_reader_left_is_no_failure(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start(tmp_path / "run", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    _, errors = process.communicate()
    assert process.returncode == 0
    assert b"Error" not in errors


def wait_for_checkpoint(process: subprocess.Popen[bytes], out: Path) -> None:
    deadline = time.monotonic() + 60
    while checkpoint.latest(out / "checkpoints") is None:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.long
def test_a_terminal_that_closes_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ours, theirs = os.openpty()

    def take_terminal() -> None:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Under nohup it is ignored.
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = start(out, preexec_fn=take_terminal, **streams)
    os.close(theirs)
    wait_for_checkpoint(process, out)
    os.close(ours)  # which sends SIGHUP
    assert process.wait(60) == 128 + signal.SIGHUP
    newest = checkpoint.load_latest(out / "checkpoints")
    assert 0 < newest.step < 400


@pytest.mark.long
def test_nohup_keeps_a_run_going(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start(out, preexec_fn=ignore, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_checkpoint(process, out)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    assert (out / "accuracy.svg").exists()
