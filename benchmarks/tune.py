"""Times the configurations that the kernels ship, and writes the fastest into their table."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks import ahead
from benchmarks.ahead import in_a_line, run_ahead
from benchmarks.launches import Launch
from benchmarks.timing import Run, make_sets, median_ms
from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.kernels import _tuning

TABLE = _tuning.TABLE
Entry = dict[str, Any]
Table = dict[str, dict[str, list[Entry]]]
_FOLDER = Path(__file__).with_name("launches")


def find_launches(only: str | None = None) -> dict[str, Launch]:
    """Return the launches to time by ``stem/name``, those of large grids last.

    Where a kernel is compared with an alternative, its launches without one are left out.

    Args:
        only: A module of benchmarks/launches; None for all.

    Raises:
        ConfigError: There is no such module.
    """
    stems = sorted(path.stem for path in _FOLDER.glob("[a-z]*.py"))
    if only is not None and only not in stems:
        raise ConfigError(
            f"--only is {only!r}{nearest(only, stems)}; choose from {', '.join(stems)}"
        )
    first: dict[str, Launch] = {}
    last: dict[str, Launch] = {}
    for stem in stems if only is None else [only]:
        module = importlib.import_module(f"benchmarks.launches.{stem}")
        for found, group in ((module.LAUNCHES, first), (getattr(module, "GRID", {}), last)):
            group |= {f"{stem}/{name}": launch for name, launch in found.items()}
    launches = first | last
    compared = {launch.kernel for launch in launches.values() if launch.alternative}
    return {
        name: launch
        for name, launch in launches.items()
        if any(launch.configs) and (launch.alternative or launch.kernel not in compared)
    }


def asked_sizes(launch: Launch, run: Run) -> dict[str, int]:
    """Return the sizes by which a launch chooses its kernel's configuration.

    Raises:
        ConfigError: It does not choose one for that kernel.
    """
    default = _tuning.forced(launch.kernel, launch.configs[0])
    # A default that fails is found again, and logged, when it is timed.
    with _tuning.recording() as asked, suppress(Exception), default:
        run()
    for kernel, sizes in asked:
        if kernel == launch.kernel:
            return sizes
    names = ", ".join(sorted({kernel for kernel, _ in asked})) or "none"
    raise ConfigError(f"a launch of {launch.kernel} asked for configurations of: {names}")


def tune_launch(
    name: str,
    launch: Launch,
    sets: Sequence[Run],
    alternatives: Sequence[Run],
    time_runs: Callable[[Sequence[Run]], float],
    log: Callable[[str], None] = ahead.log,
) -> Entry | None:
    """Return the entry of a launch for the table: its sizes, and the fastest configuration.

    A configuration that fails is logged and left out.

    Args:
        name: For the log.
        launch: The launch.
        sets: What it makes, once or for several sets of inputs.
        alternatives: The same of its alternative; may be empty.
        time_runs: Returns the milliseconds of a run.
        log: Takes a line.

    Returns:
        None where no configuration runs, or the alternative does not.
    """
    sizes, times = asked_sizes(launch, sets[0]), []
    for config in launch.configs:
        try:
            with _tuning.forced(launch.kernel, config):
                times.append((time_runs(sets), config))
        except ConfigError as error:
            raise ConfigError(f"{name} with {dict(config)}: {error}") from error
        except Exception as error:
            log(f"{name}: {dict(config)} failed: {in_a_line(error)}")
    if not times:
        return None
    ms, config = min(times, key=lambda pair: pair[0])
    entry: Entry = {"sizes": sizes, "config": dict(config), "ms": ms}
    if alternatives:
        try:
            entry["alternative_ms"] = time_runs(alternatives)
        except ConfigError as error:
            raise ConfigError(f"the alternative of {name}: {error}") from error
        except Exception as error:
            log(f"{name}: the alternative failed: {in_a_line(error)}")
            return None
    others = ", ".join(f"{other:.4g}" for other, _ in times)
    log(f"{name}: {ms:.4g} ms of {others}; alternative {entry.get('alternative_ms', 0):.4g}")
    return entry


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


def write_table(file: Path, table: Mapping[str, Any]) -> None:
    """Replace a table's file, so that no one reads half of it."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    beside.replace(file)


def tune_launches(
    launches: Mapping[str, Launch],
    device: str,
    file: Path,
    time_runs: Callable[[Sequence[Run]], float],
    sets_of: Callable[[Callable[[], Run]], Sequence[Run]],
    end: float = float("inf"),
    log: Callable[[str], None] = ahead.log,
) -> int:
    """Time launches and merge their entries into a file, one after the other.

    Of launches of a kernel with the same sizes the first counts.

    Args:
        launches: By name.
        device: Name of the device in the table.
        file: The table, written after every launch.
        time_runs: Returns the milliseconds of a run.
        sets_of: Makes the runs to be timed.
        end: No launch begins after this value of ``time.monotonic()``.
        log: Takes a line.

    Returns:
        The number of entries that were written.
    """
    table, done = read_table(file), set()
    for number, (name, launch) in enumerate(launches.items()):
        if time.monotonic() > end:
            log(f"out of time: {len(launches) - number} launches were not timed")
            break
        try:
            sets = sets_of(launch.make)
            key = (launch.kernel, tuple(asked_sizes(launch, sets[0]).items()))
            if key in done:
                continue
            alternatives = sets_of(launch.alternative) if launch.alternative else ()
        except torch.OutOfMemoryError as error:
            log(f"{name} was left out: {in_a_line(error)}")
            continue
        entry = tune_launch(name, launch, sets, alternatives, time_runs, log)
        if entry is not None:
            done.add(key)
            table = merged(table, device, launch.kernel, entry)
            write_table(file, table)
    return len(done)


def _compile(name: str) -> None:
    """Launch every configuration once, in a process that shares Triton's cache on disk."""
    launch = find_launches(name.partition("/")[0])[name]
    with torch.device("cuda"):
        run = launch.make()
        for config in launch.configs:
            with suppress(Exception), _tuning.forced(launch.kernel, config):
                run()
    del run
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def _time(runs: Sequence[Run]) -> float:
    try:
        return median_ms(runs)
    except Exception:
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise ConfigError(
                f"the GPU failed ({in_a_line(error)}); what was measured before is in the table, "
                "and --only measures the others"
            ) from error
        raise


def _sets(make: Callable[[], Run]) -> list[Run]:
    torch.cuda.empty_cache()
    with torch.device("cuda"):
        return make_sets(make, "cuda")


def tune(only: str | None, file: Path, minutes: float) -> None:
    """Time every shipped configuration on this GPU and merge the fastest into a file.

    Args:
        only: A module of benchmarks/launches; None for all.
        file: The table.
        minutes: No launch begins after this time.

    Raises:
        ConfigError: There is no CUDA device, ``only`` is unknown, or the GPU fails.
    """
    launches = find_launches(only)
    if not torch.cuda.is_available():
        raise ConfigError("torch sees no CUDA device to tune the kernels on; run tune on a GPU")
    if not file.parent.is_dir():
        raise ConfigError(f"--json is {file}, whose folder does not exist; make it first")
    end = time.monotonic() + 60 * minutes
    read_table(file)
    run_ahead(_compile, list(launches), time.monotonic() + 30 * minutes)
    # The alternatives are to be as fast as they can.
    torch.backends.cudnn.benchmark = True
    device = torch.cuda.get_device_name()
    count = tune_launches(launches, device, file, _time, _sets, end)
    print(f"{count} entries for {device} in {file}")
