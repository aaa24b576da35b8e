"""Stands in for the process of a run: does what the name of the run's folder says, at once."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    job = json.loads(sys.stdin.readline())
    folder = Path(job["folder"])
    print(f"threads {os.environ['OMP_NUM_THREADS']}", file=sys.stderr, flush=True)
    deed = (folder.parent / "deeds.json").read_text()
    deed = json.loads(deed)[folder.name]
    folder.mkdir(exist_ok=True)
    if deed == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "silent":
        return
    answer = {"changes": []}
    if deed == "diverges":
        answer = {"error": "TrainingError", "text": "the loss is nan"}
    elif deed == "no data":
        answer = {"error": "DataError", "text": "a file is missing"}
    elif deed == "waits":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        (folder / "waits").write_text("")
        signal.sigwait([signal.SIGTERM])
        answer = {"error": "Stopped", "text": "stopped by SIGTERM, all steps saved"}
    elif deed == "learns":
        for learned in (1, 2, 3):
            print(json.dumps({"learned": learned}), flush=True)
            time.sleep(0.05)
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
