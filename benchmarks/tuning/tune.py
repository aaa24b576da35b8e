"""Times the configurations that the kernels ship, and writes the fastest into their table."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.harness import ahead
from benchmarks.harness.ahead import leave_after_a_fault, run_ahead
from benchmarks.harness.files import write_json
from benchmarks.harness.process import Worker, variables
from benchmarks.launches.catalogue import find_launches
from benchmarks.launches.launch import Launch
from hypermask_fast.errors import ConfigError
from hypermask_fast.kernels import tuning

TABLE = tuning.TABLE
Entry = dict[str, Any]
Table = dict[str, dict[str, list[Entry]]]
_LAUNCH_SECONDS = 90.0
"""No launch takes as long with all its configurations, unless one of them never ends."""
_FAULTS = 2
"""How many processes may end at launches of a kernel, before the others are left out."""


class Answer(NamedTuple):
    """What a process says of a launch.

    Attributes:
        entry: For the table; None where no configuration is right, or its sizes are known.
        fault: Why the process cannot go on, or None.
        lines: For the log.
    """

    entry: Entry | None
    fault: str | None = None
    lines: Sequence[str] = ()


Measure = Callable[[str, Launch, Sequence[Mapping[str, int]]], Answer]


def merged(table: Table, device: str, kernel: str, entry: Entry) -> Table:
    """Return a table with an entry added, in place of one of the same sizes."""
    kernels = table.get(device, {})
    entries = [e for e in kernels.get(kernel, ()) if e["sizes"] != entry["sizes"]]
    entries = sorted([*entries, entry], key=lambda e: [*e["sizes"].values()])
    return {**table, device: {**kernels, kernel: entries}}


def read_table(file: Path) -> Table:
    """Return the table of a file, empty where there is none.

    Raises:
        ConfigError: It is not JSON.
    """
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file} is not JSON ({error}); remove it to begin anew") from error


def _known(table: Table, device: str, launches: Mapping[str, Launch]) -> dict[str, list[Any]]:
    """Return the sizes in a table, by kernel, whose configurations are still shipped."""
    shipped: dict[str, list[dict[str, int]]] = {}
    for launch in launches.values():
        shipped.setdefault(launch.kernel, []).extend(map(dict, launch.configs))
    return {
        kernel: [e["sizes"] for e in entries if e["config"] in shipped.get(kernel, ())]
        for kernel, entries in table.get(device, {}).items()
    }


def tune_launches(
    launches: Mapping[str, Launch],
    device: str,
    file: Path,
    measure: Measure,
    end: float = math.inf,
    resume: bool = False,
    log: Callable[[str], None] = ahead.log,
) -> int:
    """Time launches and merge their entries into a file, one after the other.

    Of launches of a kernel with the same sizes the first counts. One that fails is logged, and the
    others go on; after two at which a process ended, a kernel's others are left out.

    Args:
        launches: By name.
        device: Name of the device in the table.
        file: The table, written after every launch.
        measure: Times the configurations of a launch whose sizes are not among those given.
        end: No launch begins after this value of ``time.monotonic()``.
        resume: Leave out the sizes that the table has.
        log: Takes a line.

    Returns:
        The number of entries that were written.
    """
    table, count = read_table(file), 0
    known = _known(table, device, launches) if resume else {}
    faults: Counter[str] = Counter()
    for number, (name, launch) in enumerate(launches.items()):
        if time.monotonic() > end:
            log(f"out of time: {len(launches) - number} launches were not timed")
            break
        if faults[launch.kernel] >= _FAULTS:
            log(f"{name} was left out: {_FAULTS} processes ended at launches of {launch.kernel}")
            continue
        sizes = known.setdefault(launch.kernel, [])
        answer = measure(name, launch, sizes)
        for line in answer.lines:
            log(f"{name}: {line}")
        if answer.fault is not None:
            log(f"{name}: {answer.fault}")
            faults[launch.kernel] += 1
        if answer.entry is not None:
            sizes.append(answer.entry["sizes"])
            count += 1
            table = merged(table, device, launch.kernel, answer.entry)
            write_json(file, table, sort_keys=True)
    return count


class _Bench:
    """Times launches in a process; one at which it ends has failed, and a new one begins."""

    def __init__(self, end: float) -> None:
        self._worker: Worker | None = None
        self._end = end

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = None

    def measure(self, name: str, launch: Launch, known: Sequence[Mapping[str, int]]) -> Answer:
        if self._worker is None:
            environment = variables("cuda") | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
            self._worker = Worker("benchmarks.tuning.worker", {}, environment)
        try:
            # What has begun may go on for a while.
            left = max(20.0, self._end - time.monotonic())
            found = self._worker.ask(min(_LAUNCH_SECONDS, left), launch=name, known=list(known))
            answer = Answer(found["entry"], found["fault"], found["lines"])
        except ConfigError as error:
            answer = Answer(None, str(error))
        if answer.fault is not None:
            self.close()
        return answer


def _compile(name: str) -> None:
    """Launch every configuration once, in a process that shares Triton's cache on disk."""
    launch = find_launches(name.partition("/")[0])[name]
    with torch.device("cuda"):
        run = launch.make()
        for config in launch.configs:
            with suppress(Exception), tuning.forced(launch.kernel, config):
                run()
            leave_after_a_fault()
    del run
    leave_after_a_fault()


def tune(only: str | None, file: Path, minutes: float, resume: bool = False) -> None:
    """Time every shipped configuration on this GPU and merge the fastest into a file.

    Args:
        only: The stem of one module of launches; None for all.
        file: The table.
        minutes: No launch begins after this time.
        resume: Leave out what the table has.

    Raises:
        ConfigError: There is no CUDA device, its kernels would be interpreted, or ``only`` is
            unknown.
    """
    launches = find_launches(only)
    if not torch.cuda.is_available():
        raise ConfigError("torch sees no CUDA device to tune the kernels on; run tune on a GPU")
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise ConfigError("TRITON_INTERPRET is set and would interpret the kernels; unset it")
    if not file.parent.is_dir():
        raise ConfigError(f"--json is {file}, whose folder does not exist; make it first")
    begun = time.monotonic()
    end = begun + 60 * minutes
    read_table(file)
    run_ahead(_compile, list(launches), begun + 24 * minutes)
    device, bench = torch.cuda.get_device_name(), _Bench(end)
    try:
        count = tune_launches(launches, device, file, bench.measure, end, resume)
    finally:
        bench.close()
    print(f"{count} entries for {device} in {file}")
