"""Runs in processes of their own, several at once: begun, watched and stopped by one that waits.

A process reads its job from standard input, whose end tells it that nobody waits any more, and
answers with lines of JSON; what it prints is shown with its name before each line.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from hypermask_fast import errors
from hypermask_fast.errors import HypermaskError, Stopped, TrainingError
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.records import accuracy_files, validated
from hypermask_fast.runs import run
from hypermask_fast.runs.run import RunResult
from hypermask_fast.runs.signals import caught_signal
from hypermask_fast.settings.config import RunConfig

_WORKER = "hypermask_fast.studies.worker"
_LOOK_EVERY = 0.1
_T = TypeVar("_T")


class Pruned(Exception):
    """A run was ended before its last task, because whoever watches it wanted no more of it."""


class SignalCaught(Exception):
    """A signal came that let no other run begin.

    Attributes:
        signum: Its number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def stopping(path: Path) -> Iterator[None]:
    """Raise Stopped, of the folder of all runs, for a signal that stopped the making of them."""
    try:
        yield
    except SignalCaught as error:
        raise Stopped(error.signum, path) from error


def failure_text(error: Exception) -> str:
    """Return why a run failed, in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, HypermaskError) else f"{type(error).__name__}: {text}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to make, or to go on with.

    Attributes:
        name: What its lines begin with.
        config: Its settings, where it has no folder yet.
        folder: Its folder.
        threads: Of PyTorch; None: as many as the process has.
        memory: Bytes that the device has for it; None: what is left.
        allow_changes, show_progress: As in :func:`hypermask_fast.runs.run.resume`.
        validates: Measure the validation accuracy after each task, as `validated` does.
    """

    name: str
    config: RunConfig
    folder: Path
    threads: int | None = None
    memory: int | None = None
    allow_changes: bool = False
    show_progress: bool = True
    validates: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        settings, folder = self.config.to_toml(), os.fsdecode(self.folder)
        return {**vars(self), "config": settings, "folder": folder}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Job:
        """Return what :meth:`to_json` made JSON of."""
        config, folder = RunConfig.from_toml(values["config"]), Path(values["folder"])
        return cls(**{**values, "config": config, "folder": folder})

    def perform(self, goes: Callable[[int], bool] | None = None) -> RunResult:
        """Make the run in this process, or go on with it.

        Args:
            goes: Called with the number of learned tasks after each one, once its validation
                accuracy is written.

        Raises:
            Pruned: ``goes`` returned False.
            HypermaskError: As :func:`hypermask_fast.runs.run.train`.
        """
        options: dict[str, Any] = {"show_progress": self.show_progress, "memory": self.memory}
        if self.validates:

            def after_task(trainer: Any) -> None:
                done = validated.measure(self.folder, trainer)
                if goes is not None and not goes(done):
                    raise Pruned

            options["after_task"] = after_task
        with _threads(self.threads):
            if RunFolder(self.folder).config_path.exists():
                return run.resume(self.folder, allow_changes=self.allow_changes, **options)
            return run.train(self.config, self.folder, **options)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: The job.
        end: What the run ended with, or why it did not.
    """

    job: Job
    end: RunResult | Exception


Learned = Callable[[Job, int], bool]
"""Takes a job and the number of tasks that its run has learned; False ends the run there."""
Make = Callable[[Job], Outcome]
Unit = Callable[[Make], _T]
"""What makes one run or several, one after the other, by the function it is given."""


def alone(job: Job) -> Unit[Outcome]:
    """Return the unit of one job."""
    return lambda make: make(job)


def in_turn(
    units: Iterable[Unit[_T]],
    *,
    begins: Callable[[Job], None] = lambda job: None,
    goes: Learned | None = None,
) -> Generator[_T, None, None]:
    """Make runs one after the other in this process; the rest is as in :func:`at_once`."""

    def make(job: Job) -> Outcome:
        begins(job)
        return _ended(job, lambda: job.perform(None if goes is None else partial(goes, job)))

    for unit in units:
        yield unit(make)


def at_once(
    units: Iterable[Unit[_T]],
    count: int,
    *,
    say: Callable[[str], None],
    begins: Callable[[Job], None] = lambda job: None,
    goes: Learned | None = None,
) -> Generator[_T, None, None]:
    """Make runs in processes of their own, so many at a time.

    A signal, or an end of this iterator before its own, lets the runs that are going save a
    checkpoint and stop.

    Args:
        units: What makes the runs; taken when it can begin.
        count: Of processes.
        say: Shows a line that a run printed.
        begins: Called with a job before its process starts, one call at a time.
        goes: Called after each task of a job that validates, one call at a time; False ends the
            run.

    Yields:
        What each unit returns, when it does.
    """
    processes, left = _Processes(say, begins, goes), iter(units)
    waiting: set[Future[_T]] = set()
    with caught_signal() as stop, ThreadPoolExecutor(count) as pool:
        try:
            while True:
                while len(waiting) < count and stop() is None:
                    unit = next(left, None)
                    if unit is None:
                        break
                    waiting.add(pool.submit(unit, processes.make))
                if not waiting:
                    break
                ended, waiting = wait(waiting, _LOOK_EVERY, FIRST_COMPLETED)
                signum = stop()
                if signum is not None:
                    processes.stop(signum)
                for future in ended:
                    yield future.result()
            signum = stop()
            if signum is not None:
                raise SignalCaught(signum)
        except KeyboardInterrupt:  # a second signal
            processes.stop(again=True)
            raise
        finally:
            for future in waiting:
                future.cancel()
            processes.stop()


def _ended(job: Job, perform: Callable[[], RunResult]) -> Outcome:
    end: RunResult | Exception
    try:
        end = perform()
    except Exception as error:
        end = error
    return Outcome(job, end)


class _Processes:
    """The processes of jobs; a thread waits for each."""

    def __init__(
        self,
        say: Callable[[str], None],
        begins: Callable[[Job], None],
        goes: Learned | None,
    ) -> None:
        self._say, self._begins, self._goes = say, begins, goes
        self._lock = threading.RLock()
        self._running: list[subprocess.Popen[str]] = []
        self._signum: int | None = None

    def stop(self, signum: int = signal.SIGTERM, *, again: bool = False) -> None:
        """Let all save a checkpoint and stop, and no other begin; again: without a checkpoint."""
        with self._lock:
            if self._signum is None or again:
                self._signum = signum
                for process in self._running:
                    process.terminate()

    def make(self, job: Job) -> Outcome:
        """Make a run in a process of its own."""
        return _ended(job, lambda: self._make(job))

    def _stopped(self, job: Job) -> Stopped:
        return Stopped(self._signum or signal.SIGTERM, job.folder)

    def _make(self, job: Job) -> RunResult:
        with self._lock:
            if self._signum is not None:
                raise self._stopped(job)
            self._begins(job)
            process = _started(job)
            self._running.append(process)
        shown = threading.Thread(target=self._show, args=(job, process), daemon=True)
        shown.start()
        pruned = False
        end: dict[str, Any] = {}
        try:
            for line in process.stdout or ():
                event = json.loads(line)
                if "learned" not in event:
                    end = event
                elif self._goes is not None:
                    with self._lock:
                        goes = self._goes(job, event["learned"])
                    if not goes and not pruned:
                        pruned = True
                        process.terminate()
            status = process.wait()
            shown.join()
        finally:
            with self._lock:
                self._running.remove(process)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        if pruned:
            raise Pruned
        if "changes" in end:
            matrix, names = accuracy_files.read_accuracy(RunFolder(job.folder).accuracy_npz)
            return RunResult(job.folder, matrix, names, end["changes"])
        if self._signum is not None and (status == -signal.SIGTERM or end["error"] == "Stopped"):
            raise self._stopped(job)
        raise _error(job, end, status)

    def _show(self, job: Job, process: subprocess.Popen[str]) -> None:
        for line in process.stderr or ():
            if line.strip():
                self._say(f"{job.name}: {line.rstrip()}")


def _started(job: Job) -> subprocess.Popen[str]:
    """Start the process of a job, and give it the job."""
    # The same modules are found as here, those of one's own too.
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    environment = {**os.environ, "PYTHONPATH": path}
    if job.threads is not None:
        environment["OMP_NUM_THREADS"] = str(job.threads)
    process = subprocess.Popen(
        [sys.executable, "-m", _WORKER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="backslashreplace",
        process_group=0,  # a terminal's signals reach it through this process alone
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # its status tells why it ended
        process.stdin.write(json.dumps({**job.to_json(), "argv": sys.argv}) + "\n")
        process.stdin.flush()
    return process


def _error(job: Job, end: dict[str, Any], status: int) -> Exception:
    """Return why the process of a job ended without a result."""
    if "error" in end:
        kind = getattr(errors, end["error"], TrainingError)
        # Somebody else has stopped this run alone.
        return TrainingError(end["text"]) if kind is Stopped else kind(end["text"])
    if status < 0:
        name = signal.Signals(-status).name
        hint = ", as the system does where memory is short" if name == "SIGKILL" else ""
        how = f"was ended by {name}{hint}"
    else:
        how = f"ended with the status {status} and no result"
    return TrainingError(
        f"the process of {job.folder} {how}; go on with `hypermask resume {job.folder}`"
    )
