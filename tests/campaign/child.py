"""A process of the command ``hypermask`` that the preloaded shim watches: fresh, or forked.

``python -m tests.campaign.child JOB`` is one fresh process. Without a job it imports the package,
and then forks a process for each job that comes as a line on its standard input.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

ACTIONS = ("nothing", "kill", "kill half-way", "fail", "fail from here", "write short")
"""What the shim does at an operation, by its number there."""

TIMEOUT = 600  # seconds, for a run of one or two on a machine that is busy


@dataclass(frozen=True)
class Job:
    """One command, and what happens to it.

    Attributes:
        arguments: Of the command line.
        folder: Operations on files below it are counted, and the outputs of the job are beside it.
        register: Module whose ``register()`` adds the method; "" for one of the package.
        at: The operation, from 1, at which ``action`` happens; 0 for none.
        action: One of `ACTIONS`.
        error: The errno of failures.
        traced: Write all operations to ``FOLDER.trace``.
        reads: Count the opening of any file too.
        compiling: Kill this many seconds after the native library's compiler began.
    """

    arguments: Sequence[str]
    folder: str
    register: str = ""
    at: int = 0
    action: str = "nothing"
    error: int = 0
    traced: bool = False
    reads: bool = False
    compiling: float | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def _arm(job: Job) -> ctypes.CDLL:
    shim = ctypes.CDLL(None)
    report = os.open(f"{job.folder}.report", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    trace = os.open(f"{job.folder}.trace", os.O_WRONLY | os.O_CREAT) if job.traced else -1
    action = ACTIONS.index(job.action)
    folder = job.folder.encode()
    shim.campaign_arm(
        folder, ctypes.c_long(job.at), action, job.error, report, trace, int(job.reads)
    )
    return shim


def _watch_steps(shim: ctypes.CDLL) -> None:
    """Mark each backward pass, and tell the shim the task and the phase of its method."""
    import torch

    from hypermask_fast.training.trainer import Trainer

    fit, backward = Trainer.fit, torch.Tensor.backward

    def place(trainer: Trainer) -> None:
        text = f"task {trainer.tasks_done + 1} phase {trainer.learner.phase}"
        shim.campaign_place(text.encode())

    def placed_fit(self: Trainer, *args: Any, **options: Any) -> Any:
        def marked(tensor: torch.Tensor, *inner: Any, **more: Any) -> None:
            place(self)
            shim.campaign_mark()
            backward(tensor, *inner, **more)
            shim.campaign_mark()

        torch.Tensor.backward = marked  # type: ignore[method-assign, assignment]
        try:
            return fit(self, *args, **options)
        finally:
            torch.Tensor.backward = backward  # type: ignore[method-assign]
            shim.campaign_place(f"task {self.tasks_done} end".encode())

    Trainer.fit = placed_fit  # type: ignore[method-assign]


def _watch_compiler(shim: ctypes.CDLL, delay: float) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and "-shared" in arguments[1]:
            timer = threading.Timer(delay, shim.campaign_kill, [b"compile"])
            timer.daemon = True
            timer.start()

    sys.addaudithook(hook)


def _run(job: Job) -> int:
    if job.register:
        import_module(job.register).register()
    from hypermask_fast.cli import main

    return main(job.arguments)


def _fork(job: Job) -> int:
    """Run a job in a forked child; return its status as `subprocess` has it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    signal.alarm(TIMEOUT)
    try:
        for number, name in ((1, "out"), (2, "err")):
            descriptor = os.open(f"{job.folder}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, number)
            os.close(descriptor)
        _watch_steps(_arm(job))
        status = _run(job)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _warm_up() -> None:
    """Import what a run imports, which takes longer than a small run itself."""
    import torch._dynamo  # noqa: F401

    import hypermask_fast.runs.run  # noqa: F401
    from hypermask_fast.native import library

    library.load()


def _serve() -> None:
    _warm_up()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        print(_fork(Job(**json.loads(line))), file=answers)


def main() -> None:
    os.environ.pop("LD_PRELOAD", None)  # not for the compiler
    if len(sys.argv) == 1:
        _serve()
        return
    job = Job(**json.loads(sys.argv[1]))
    shim = _arm(job)
    if job.compiling is not None:
        _watch_compiler(shim, job.compiling)
    if job.traced:  # imports the package before the command does, which a killed run may not
        _watch_steps(shim)
    sys.exit(_run(job))


if __name__ == "__main__":
    main()
