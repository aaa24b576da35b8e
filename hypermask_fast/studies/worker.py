"""The process of one run: reads a job, makes the run, and answers; see `apart`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from typing import Any

from hypermask_fast.console.warned import plain_warnings
from hypermask_fast.errors import HypermaskError
from hypermask_fast.files.plain_json import plain_json
from hypermask_fast.studies.apart import Job, failure_text


def _stop_with_parent() -> None:
    """Stop the run, which saves a checkpoint, when the process that waits for it has ended."""
    # Not by sys.stdin, whose lock a thread must not hold when the interpreter ends.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _ended(job: Job, answer: Any) -> dict[str, Any]:
    def goes(learned: int) -> bool:
        answer({"learned": learned})
        return True

    try:
        result = job.perform(goes)
        return {"changes": plain_json(result.changes, "changes", nonfinite_as_text=True)}
    except HypermaskError as error:
        kind = type(error).__name__
        return {"error": kind, "text": str(error)}
    except Exception as error:
        if not isinstance(error, (ArithmeticError, MemoryError, RuntimeError)):
            traceback.print_exc()
        return {"error": "TrainingError", "text": failure_text(error)}


def main() -> None:
    """Make the run of the job on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What a user's code prints is no answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return
        line += byte
    values = json.loads(line)
    sys.argv = values.pop("argv")  # of the command, for the run's manifest
    job = Job.from_json(values)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    with plain_warnings("warning"):
        answer(_ended(job, answer))


if __name__ == "__main__":
    main()
