"""Processes that answer requests in lines of JSON."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypermask_fast.errors import ConfigError

_ROOT = Path(__file__).parents[2]
# A CUDA error goes on for some lines after the one that tells what happened.
_ERROR = re.compile(r"[\w.]+(Error|Exception|Exit|Interrupt)\b")


def _reason(log: str) -> str:
    """Return the line of a log that tells why its process ended."""
    lines = log.strip().splitlines() or ["it said nothing"]
    return next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1])[:300]


def variables(device: str) -> dict[str, str]:
    """Return what a worker's environment needs, whatever is set here."""
    if device != "cuda":
        return {}
    # Kernels are compiled, and chosen as they are by default. A learner's state is made beside
    # others, and no pass of C++ is worth compiling for it.
    return {
        **{"TRITON_INTERPRET": "0", "HYPERMASK_FAST_BACKEND": "auto", "HYPERMASK_FAST_NATIVE": "0"},
        **{"CUDA_LAUNCH_BLOCKING": "0", "TORCHINDUCTOR_COMPILE_THREADS": "4"},
    }


def serve(begin: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Answer the lines on stdin until it ends; what else is printed goes to stderr.

    Args:
        begin: Makes what takes a request and returns its answer.
    """
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        answer = begin()
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


class Worker:
    """A process that answers requests, of a module such as :mod:`benchmarks.steps.worker`.

    Args:
        module: Its name.
        spec: What it is given at its start.
        environment: Variables to set.
    """

    def __init__(self, module: str, spec: dict[str, Any], environment: dict[str, str]) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=_ROOT,
            env={**os.environ, **environment},
        )

    def ask(self, limit: float = math.inf, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Args:
            limit: Seconds after which the process is killed. Default: any number.
            **request: What is sent.

        Raises:
            ConfigError: The process ended, or was killed; the message tells why.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(max(0.0, min(limit, threading.TIMEOUT_MAX)), kill)
        timer.daemon = True
        timer.start()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            code = self._process.wait()
            if late.is_set():
                raise ConfigError(f"the process had no answer within {limit:.0f} s")
            self._log.seek(0)
            said = _reason(self._log.read())
            raise ConfigError(f"the process ended with status {code}: {said}")
        return json.loads(line)

    def finish(self) -> None:
        """Ask the process to end, and do not wait."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdout is not None
        self.finish()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
