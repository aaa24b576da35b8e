"""A process that times the configurations of launches when its parent asks.

It reads JSON lines from stdin, ``{"launch": NAME, "known": [SIZES, ...]}``, and answers each with
one on stdout: the entry for the table or null, why it cannot go on or null, and lines of a log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from benchmarks.harness.ahead import device_works, in_a_line
from benchmarks.harness.process import serve
from benchmarks.harness.timing import make_sets, median_ms
from benchmarks.launches.catalogue import find_launches
from benchmarks.launches.launch import Launch, Run
from benchmarks.tuning.tune import Answer, Entry
from benchmarks.tuning.verify import Check
from hypermask_fast.errors import ConfigError
from hypermask_fast.kernels import tuning


def asked_sizes(launch: Launch, run: Run) -> dict[str, int]:
    """Return the sizes by which a launch chooses its kernel's configuration.

    Raises:
        ConfigError: It does not choose one for that kernel.
    """
    default = tuning.forced(launch.kernel, launch.configs[0])
    # A default that fails is found again, and logged, when it is timed.
    with tuning.recording() as asked, suppress(Exception), default:
        run()
    for kernel, sizes in asked:
        if kernel == launch.kernel:
            return sizes
    names = ", ".join(sorted({kernel for kernel, _ in asked})) or "none"
    raise ConfigError(f"a launch of {launch.kernel} asked for configurations of: {names}")


def _on_gpu(make: Callable[[], Run]) -> Run:
    with torch.device("cuda"):
        return make()


def _sets(make: Callable[[], Run]) -> list[Run]:
    with torch.device("cuda"):
        return make_sets(make, "cuda")


def tune_launch(
    launch: Launch,
    known: Sequence[Mapping[str, int]] = (),
    time_runs: Callable[[Sequence[Run]], float] = median_ms,
    sets_of: Callable[[Callable[[], Run]], Sequence[Run]] = _sets,
    on_device: Callable[[Callable[[], Run]], Run] = _on_gpu,
    works: Callable[[], bool] = device_works,
) -> Answer:
    """Return the entry of a launch for the table: its sizes, and the fastest configuration.

    A configuration that fails, or whose results are not the default's, is logged and left out. One
    after which the device does not work ends the search among those before it.

    Args:
        launch: The launch.
        known: Sizes that need no entry.
        time_runs: Returns the milliseconds of a run of several sets of inputs.
        sets_of: Makes these sets.
        on_device: Makes one.
        works: Tells after a failure whether the process can go on.
    """
    lines: list[str] = []
    sizes = asked_sizes(launch, on_device(launch.make))
    if not works():
        return Answer(None, "the default configuration is a fault of the device")
    if sizes in known:
        return Answer(None)
    entry: Entry = {"sizes": sizes}
    if launch.alternative is not None:
        entry["alternative_ms"] = time_runs(sets_of(launch.alternative))
    check, sets = Check(launch, on_device), sets_of(launch.make)
    times: list[tuple[float, Mapping[str, int]]] = []
    fault = None
    for config in launch.configs:
        try:
            wrong = check.fault(config)
            if wrong is None:
                with tuning.forced(launch.kernel, config):
                    times.append((time_runs(sets), config))
            else:
                lines.append(f"{dict(config)} is wrong: {wrong}")
        except Exception as error:
            lines.append(f"{dict(config)} failed: {in_a_line(error)}")
            if not works():
                fault = f"the device failed at {dict(config)}"
                break
    if not times:
        return Answer(None, fault, [*lines, "no configuration is right"])
    ms, config = min(times, key=lambda pair: pair[0])
    entry |= {"config": dict(config), "ms": ms}
    others = ", ".join(f"{other:.4g}" for other, _ in times)
    than = f"; alternative {entry['alternative_ms']:.4g}" if "alternative_ms" in entry else ""
    return Answer(entry, fault, [*lines, f"{ms:.4g} ms of {others}{than}"])


def _begin() -> Callable[[dict[str, Any]], dict[str, Any]]:
    # The alternatives are to be as fast as they can.
    torch.backends.cudnn.benchmark = True
    launches = find_launches()

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        try:
            found = tune_launch(launches[request["launch"]], request["known"])
        except Exception as error:
            fault = None if device_works() else "the device failed"
            found = Answer(None, fault, [f"it was left out: {in_a_line(error)}"])
        if found.fault is None:
            torch.cuda.empty_cache()
        return found._asdict()

    return answer


if __name__ == "__main__":
    serve(_begin)
