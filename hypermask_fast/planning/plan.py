"""The memory of a run before it starts: what each part takes, whether it fits, and what would."""

from __future__ import annotations

import bisect
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch

from hypermask_fast.errors import ConfigError, HypermaskError, PlanError, shown
from hypermask_fast.fields import check_value
from hypermask_fast.memory import available_memory
from hypermask_fast.networks.catalogue import OwnNetworkSettings
from hypermask_fast.planning.simulation import (
    LOADED,
    RESUMING,
    ScenarioSize,
    Simulation,
    simulate,
)
from hypermask_fast.planning.sizes import scenario_size
from hypermask_fast.scenarios import Scenario
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.kept_logits import ROWS

# What PyTorch and Python load when a run takes its first steps; measured on a CPU.
LIBRARIES = 160 * 2**20
# A checkpoint passes the host in blocks of this size.
_SAVING = 8 * 2**20
_CHECKPOINTS = 3
_NEAR = 4  # processes more than the estimate


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _largest(config: RunConfig) -> str:
    """Return the setting with the largest integer, and its value."""

    def size(value: Any) -> int:
        items = value if isinstance(value, tuple) else (value,)
        return max((item for item in items if isinstance(item, int)), default=0)

    options = {k: v for k, v in config.options().items() if k not in ("seed", "steps", "epochs")}
    name = max(options, key=lambda name: size(options[name]))
    return f"{name}={options[name]!r}"


def _text(changes: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in changes.items())


@dataclass(frozen=True)
class Plan:
    """What a run takes at its last task.

    Attributes:
        config: The settings.
        device: "cpu", "cuda" or another kind.
        size: Of the scenario.
        found: Bytes of every part at every moment.
        available: Bytes that the device has left; None where nothing tells.
        processes: Those that train together, each with a device; it is a plan of one of them.
    """

    config: RunConfig
    device: str
    size: ScenarioSize
    found: Simulation
    available: int | None
    processes: int = 1

    @property
    def moment(self) -> str:
        """The moment of the peak, resuming apart."""
        peaks = {m: sum(parts.values()) for m, parts in self.found.peaks.items() if m != RESUMING}
        return max(peaks, key=lambda moment: peaks[moment])

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each part at the peak."""
        return self.found.peaks[self.moment]

    @property
    def peak(self) -> int:
        """Bytes at the peak of training, without :data:`LIBRARIES`."""
        return sum(self.parts.values())

    def needed(self, *, resuming: bool = False) -> int:
        """Return the bytes that must be free before the run: the peak, and what is loaded.

        Args:
            resuming: Of a run that continues from a checkpoint.
        """
        parts = self.found.peaks.get(RESUMING, {}) if resuming else {}
        return max(self.peak, sum(parts.values())) + LIBRARIES

    def fits(self, *, resuming: bool = False) -> bool:
        """Return whether the memory there is is enough; True where nothing tells."""
        return self.available is None or self.needed(resuming=resuming) <= self.available

    def alternatives(self) -> list[tuple[str, Plan]]:
        """Return changes of the settings that take less memory, and their plans."""
        config, found = self.config, []
        offered = [{"moments": "bfloat16"}, *config.method.cheaper(), {"selection": "last"}]
        present = config.options()
        for changes in offered:
            changed = {name: v for name, v in changes.items() if present[name] != v}
            other = self._changed(changed) if changed else None
            if changed and other is None and "moments" not in changed:
                # What the method offers may not take the present moments.
                changed["moments"] = "float32"
                other = self._changed(changed)
            if other and other.peak < self.peak:
                found.append((_text(changed), other))
        width = self._largest_width()
        narrowing = config.method.narrowed(width) if width else None
        narrowed = self._changed(narrowing) if narrowing else None
        if narrowing and narrowed:
            found.append((_text(narrowing), narrowed))
        return found

    def _changed(self, changes: dict[str, Any]) -> Plan | None:
        try:
            changed = self.config.replace(**changes)
            return self._like(changed, self.processes)
        except ConfigError:
            return None

    def _like(self, config: RunConfig, processes: int) -> Plan:
        return _planned(config, self.size, self.device, self.available, processes)

    def fewest(self, *, resuming: bool = False) -> Plan | None:
        """Return the plan of the smallest number of processes that fits where they share the head.

        None where no number does, or the method has none to share; ``resuming`` is of :meth:`fits`.
        """
        if not self.config.method.divides_head:
            return None
        config = self.config.replace(shard_head=True)

        @functools.cache
        def of(processes: int) -> Plan | None:
            try:
                return self._like(config, processes)
            except ConfigError:
                return None  # more processes than rows

        def fits(processes: int) -> bool:
            found = of(processes)
            return found is not None and found.fits(resuming=resuming)

        two, eight = of(2), of(8)
        if fits(2) or two is None or eight is None or self.available is None:
            return two
        # What is needed is nearly a part for each row and a rest.
        in_two, in_eight = (each.needed(resuming=resuming) for each in (two, eight))
        rows = (in_two - in_eight) / (1 / 2 - 1 / 8)
        left = self.available - (in_eight - rows / 8)
        if left <= 0:
            return None
        guess = max(3, math.ceil(rows / left))
        near = range(guess, guess + _NEAR)
        most = next((n for n in near if fits(n)), None)
        while most is not None and fits(most - 1):
            most -= 1
        return None if most is None else of(most)

    def _fitting(self, *, resuming: bool = False) -> list[str]:
        """Return what would fit, in words."""
        found = [
            f"{change} ({_mib(other.needed(resuming=resuming))})"
            for change, other in self.alternatives()
            if other.fits(resuming=resuming)
        ]
        fewest = self.fewest(resuming=resuming)
        if fewest is not None:
            needed = _mib(fewest.needed(resuming=resuming))
            found.append(f"{fewest.processes} processes, shard_head=True ({needed} each)")
        return found

    def _largest_width(self) -> int:
        """Return the largest H that fits, if it is less than the present one, else 0."""

        def is_too_wide(width: int) -> bool:
            changes = self.config.method.narrowed(width)
            other = self._changed(changes) if changes else None
            return other is None or not other.fits()

        return bisect.bisect_left(range(1, self.config.method.width + 1), True, key=is_too_wide)

    def require(self, *, resuming: bool = False) -> None:
        """Raise ConfigError where the memory there is is too little, with what would fit."""
        if self.fits(resuming=resuming):
            return
        assert self.available is not None
        parts = self.found.peaks.get(RESUMING, self.parts) if resuming else self.parts
        largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
        if resuming:
            fix, fewest = "free some, or resume it where there is more", self.fewest(resuming=True)
            if fewest is not None:
                fix += f", or by torchrun in {fewest.processes} processes with shard_head = true"
        else:
            fitting = self._fitting()
            fix = f"what would fit: {'; '.join(fitting)}" if fitting else "use a smaller network"
        raise ConfigError(
            f"the run needs {_mib(self.needed(resuming=resuming))} of {self.device} memory ("
            + ", ".join(f"{part} {_mib(size)}" for part, size in largest)
            + f", ...) and {_mib(self.available)} are available; {fix}; `hypermask plan` shows all "
            "figures"
        )

    def require_resumable(self) -> None:
        """Raise ConfigError where a run that fits could not go on from its checkpoints.

        The memory that is said to be available may be another: who gives more goes on.
        """
        if self.fits(resuming=True):
            return
        assert self.available is not None
        parts, needed = self.found.peaks[RESUMING], self.needed(resuming=True)
        fitting = self._fitting(resuming=True)
        fix = f"what would fit: {'; '.join(fitting)}" if fitting else "use a smaller network"
        gib = math.ceil(needed / 2**30 * 1000) / 1000
        raise ConfigError(
            f"the run would train in the {_mib(self.available)} of {self.device} memory that are "
            f"available, and could not be resumed there once it is stopped, which needs "
            f"{_mib(needed)} ({LOADED} {_mib(parts.get(LOADED, 0))}); {fix}; or give --memory-gib "
            f"{gib:g} (memory= in Python) to start it all the same"
        )

    def table(self) -> str:
        """Return the plan for people to read."""
        found, title = self.found, self.config.preset or self.config.scenario.name
        lines = [
            f"{title} on {self.device}, at the last of {self.size.tasks} tasks{self._of_each}",
            ", ".join(
                f"{name.replace('_', ' ')}: {value:,}" for name, value in found.facts.items()
            ),
            "",
        ]
        rows = [*self.parts.items(), (f"peak, in the {self.moment}", self.peak)]
        rows += [("libraries that are loaded", LIBRARIES), ("needed", self.needed())]
        rows += [
            (f"also: {moment}", sum(parts.values()))
            for moment, parts in found.peaks.items()
            if moment != self.moment
        ]
        rows += [
            ("a checkpoint", found.checkpoint),
            ("checkpoints on disk: two, and one being written", _CHECKPOINTS * found.checkpoint),
            ("memory to write one", _SAVING),
            ("logits of the learned tasks on disk", self.logits),
        ]
        if self.device != "cpu":
            rows.append(("memory of the host, to build the learner", found.learner))
        if self.available is not None:
            rows.append(("available", self.available))
        width = max(len(name) for name, _ in rows)
        lines += [f"{name:<{width}}  {_mib(size):>16}" for name, size in rows]
        return "\n".join(lines)

    @property
    def _of_each(self) -> str:
        if self.processes == 1:
            return ""
        shared = ", which share the head" if self.config.run.shard_head else ""
        return f", in one of {self.processes} processes{shared}"

    @property
    def logits(self) -> int:
        """Bytes of the logits that the run keeps on the disk of all tasks."""
        return self.size.tasks * min(ROWS, self.size.test) * self.size.classes * 4

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, in bytes."""
        fewest = None if self.fits() else self.fewest()
        return {
            "preset": self.config.preset,
            "scenario": self.config.scenario.name,
            "device": self.device,
            "tasks": self.size.tasks,
            "processes": self.processes,
            **self.found.facts,
            "moment": self.moment,
            "parts": self.parts,
            "peak": self.peak,
            "needed": self.needed(),
            "moments": self.found.peaks,
            "checkpoint": self.found.checkpoint,
            "disk": _CHECKPOINTS * self.found.checkpoint + self.logits,
            "available": self.available,
            "fits": self.fits(),
            "fewest_processes": None if fewest is None else fewest.processes,
        }


def device_kind(config: RunConfig) -> str:
    """Return the kind of a run's device: "cpu", "cuda" or another one."""
    if config.run.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.run.device.partition(":")[0]


def check_config(config: RunConfig) -> None:
    """Raise TypeError where settings are none."""
    if not isinstance(config, RunConfig):
        raise TypeError(f"config is {shown(config)}; give a RunConfig, as RunConfig.from_preset()")


def plan(
    config: RunConfig,
    *,
    memory: int | None = None,
    scenario: Scenario | None = None,
    processes: int = 1,
) -> Plan:
    """Return what a run takes, before anything of it is made.

    The last task runs on the meta device, whose tensors have no memory, through the code that
    trains it. On a CPU the measured peak (of resident memory, over that after a tiny run) was
    within 10 % for heads of 50 million parameters and more. Functions of one's own that make the
    network and the scenario are called.

    Args:
        config: The settings.
        memory: Bytes that a process has; default: what this machine has left, on a CPU of
            all of them together.
        scenario: What the function made that the settings name. Default: it is called.
        processes: Those that train together, each with its rows of a batch and, with
            ``shard_head``, of the head; planned is the first one. Default 1.

    Raises:
        ConfigError: A setting does not fit, or the memory is no number of bytes.
        PlanError: A network of one's own does not run without values.
        DataError: A data file of one's own scenario is missing or damaged.
        TypeError: It is no RunConfig.
    """
    check_config(config)
    check_value("memory", int, memory, None, low=0)
    check_value("processes", int, processes, low=1)
    if scenario is not None and not isinstance(scenario, Scenario):
        raise TypeError(f"scenario is {shown(scenario)}; give a Scenario, or leave it out")
    device = device_kind(config)
    if memory is None:  # before data of one's own are there, which the plan counts
        memory = available_memory(device if config.run.device == "auto" else config.run.device)
        if memory is not None and device == "cpu":
            memory //= processes
    return _planned(config, scenario_size(config, scenario), device, memory, processes)


@functools.lru_cache(maxsize=32)
def _of_catalogue(
    config: RunConfig, size: ScenarioSize, on_cpu: bool, processes: int, threads: int
) -> Simulation:
    """Return the simulation of settings that name nothing outside of the package."""
    return simulate(config, size, on_cpu=on_cpu, processes=processes)


def _simulation(config: RunConfig, size: ScenarioSize, on_cpu: bool, processes: int) -> Simulation:
    if config.scenario.is_own or isinstance(config.network, OwnNetworkSettings):
        # A function may return another one by now.
        return simulate(config, size, on_cpu=on_cpu, processes=processes)
    # Runs of several seeds have one plan.
    alike = config.replace(seed=0)
    return _of_catalogue(alike, size, on_cpu, processes, torch.get_num_threads())


def _planned(
    config: RunConfig, size: ScenarioSize, device: str, memory: int | None, processes: int
) -> Plan:
    if config.tasks is None:
        config = config.replace(tasks=size.tasks)
    try:
        found = _simulation(config, size, device == "cpu", processes)
    except HypermaskError:
        raise
    except Exception as error:
        # PyTorch tells of sizes that overflow by several.
        if isinstance(error, (MemoryError, OverflowError)) or (
            isinstance(error, (RuntimeError, TypeError)) and "overflow" in str(error).lower()
        ):
            raise ConfigError(
                f"the sizes of the run overflow: {_largest(config)}; give smaller ones"
            ) from error
        if not isinstance(config.network, OwnNetworkSettings):
            raise
        raise PlanError(
            f"network={config.network.name!r} cannot be planned: without values, on the meta "
            f"device, it fails ({type(error).__name__}: {' '.join(str(error).split())}); make it "
            "free of .item() and of tensors that are no parameters or buffers"
        ) from error
    return Plan(config, device, size, found, memory, processes)
