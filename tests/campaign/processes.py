"""Starts the processes that are killed and failed, and reads what they left."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tests.campaign.child import TIMEOUT, Job

ROOT = Path(__file__).parents[2]


class Operation(NamedTuple):
    """One operation of a process, as the shim writes it.

    Attributes:
        number: From 1.
        kind: open, write, fsync, rename, mkdir, truncate, remove; read, mark, compile.
        path: Below the folder of the job.
        place: What the run did: "start-up", "task 1 phase train", "task 1 end".
    """

    number: int
    kind: str
    path: str
    place: str


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status, what it printed, and the operation that was hit, if any."""

    status: int
    errors: str
    hit: Operation | None

    @property
    def was_killed(self) -> bool:
        return self.status == -9 and self.hit is not None


def operations(path: Path) -> list[Operation]:
    """Read a trace or a report."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        number, *rest = line.split("\t")
        found.append(Operation(int(number), *rest))
    return found


def compiled_shim(folder: Path) -> Path:
    """Compile the shim into ``folder``."""
    shim = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", shim, source]
    subprocess.run([*map(str, command), "-lpthread"], check=True)
    return shim


class Processes:
    """Runs jobs, each in a process of its own, some forked from a few that have imported PyTorch.

    Args:
        folder: For the shim and the native library.
        side_by_side: How many may run at once.

    Attributes:
        compiling: Seconds that compiling the native library takes.
    """

    def __init__(self, folder: Path, side_by_side: int) -> None:
        self.cache = folder / "cache"
        self.environment = {
            **os.environ,
            "HYPERMASK_FAST_CACHE": str(self.cache),
            "LD_PRELOAD": str(compiled_shim(folder)),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        # The first compiles the library for all that follow.
        compiled, loaded = self._load_library(), self._load_library()
        self.compiling = compiled - loaded
        self._servers: queue.Queue[subprocess.Popen[str]] = queue.Queue()
        self._stack = ExitStack()
        for _ in range(side_by_side):
            self._servers.put(self._stack.enter_context(self._server()))

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _load_library(self) -> float:
        begun = time.monotonic()
        subprocess.run(
            [sys.executable, "-c", "from hypermask_fast.native import library; library.load()"],
            env={**self.environment, "LD_PRELOAD": ""},
            check=True,
        )
        return time.monotonic() - begun

    @contextmanager
    def _server(self) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [sys.executable, "-m", "tests.campaign.child"],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            try:
                yield server
            finally:
                server.kill()

    def forked(self, job: Job) -> Ended:
        """Run a job in a process that has imported the package already."""
        server = self._servers.get()
        try:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(job.to_json() + "\n")
            server.stdin.flush()
            answer = server.stdout.readline()
            assert answer, f"the process that forks others ended while it did {job}"
        finally:
            self._servers.put(server)
        return self._ended(job, int(answer))

    def fresh(self, job: Job, cache: Path | None = None) -> Ended:
        """Run a job in a new process, with a cache of native libraries of its own if given."""
        with open(f"{job.folder}.out", "wb") as out, open(f"{job.folder}.err", "wb") as errors:
            process = subprocess.run(
                [sys.executable, "-m", "tests.campaign.child", job.to_json()],
                env={**self.environment, "HYPERMASK_FAST_CACHE": str(cache or self.cache)},
                stdout=out,
                stderr=errors,
                timeout=TIMEOUT,
                check=False,
            )
        return self._ended(job, process.returncode)

    def _ended(self, job: Job, status: int) -> Ended:
        report = Path(f"{job.folder}.report")
        hits = operations(report)
        report.unlink(missing_ok=True)
        errors = Path(f"{job.folder}.err").read_text(errors="replace")
        return Ended(status, errors, hits[0] if hits else None)


@dataclass(frozen=True)
class Run:
    """The settings of the runs, and the commands that train one and continue it.

    Attributes:
        method: Its name.
        register: Module whose ``register()`` adds it, or "".
        settings: Options of ``hypermask train``.
    """

    method: str
    register: str
    settings: tuple[str, ...]

    def train(self, folder: Path) -> Job:
        options = ("--method", self.method, *self.settings, "--out", str(folder / "runs" / "a"))
        return Job(("train", *options), str(folder), self.register)

    def next(self, folder: Path) -> Job:
        """Return what a user would type: resume where there is a run, or else train."""
        out = folder / "runs" / "a"
        if not (out / "config.toml").exists():
            return self.train(folder)
        return replace(self.train(folder), arguments=("resume", str(out)))
