"""Variants of a step measured in turn: phases, whole steps, and errors against float64."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hypermask_fast.benching import hypnettorch
from hypermask_fast.benching.bandwidth import copy_bandwidth
from hypermask_fast.benching.first_step import differences, errors
from hypermask_fast.benching.laps import Clock, Laps, clock_of
from hypermask_fast.benching.names import CLOCKS, OPTIMIZER, TORCH
from hypermask_fast.benching.published import why_not_published
from hypermask_fast.benching.results import STEP, Bench, Measured
from hypermask_fast.benching.start import Start, device_name
from hypermask_fast.benching.variants import (
    Variant,
    ordinary,
    ours,
    published,
)
from hypermask_fast.console.stages import stage
from hypermask_fast.errors import ConfigError, HypermaskError, PlanError
from hypermask_fast.memory import available_memory
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.methods.hypermask.settings import HyperMaskSettings
from hypermask_fast.metrics.medians import FEWEST, Median, median
from hypermask_fast.planning.plan import plan
from hypermask_fast.settings.config import RunConfig

# Steps before those that are timed.
_WARM_UP = 2
# How many times the memory of this package's step a plain one takes, and one in float64.
_PLAIN, _EXACT = 2.0, 3.0
_NO_ROOM = "float64 does not fit in memory"


@dataclass(frozen=True)
class _Makers:
    """What makes the variants to measure beside, and what the reference is.

    Attributes:
        exact: Makes the step in float64.
        others: Make the others, in their order.
        missing: Why those that were asked for and are not measured are not, by name.
    """

    exact: Callable[..., Variant]
    others: Sequence[Callable[..., Variant]]
    missing: Mapping[str, str]


def _makers(start: Start, learner: Learner, against: Sequence[str]) -> _Makers:
    why = "of published steps there is HyperMask's alone"
    if isinstance(learner, HyperMask):
        why = why_not_published(learner)
    others: list[Callable[..., Variant]] = []
    missing = {}
    for name in against:
        if name == TORCH:
            others.append(partial(ordinary, start, why=why) if why else partial(published, start))
        elif why:
            missing[name] = why
        elif not hypnettorch.available():
            missing[name] = "it is not installed (pip install hypnettorch==0.0.4)"
        else:
            others.append(partial(published, start, algorithm=hypnettorch.Hypnettorch))
    exact = partial(ordinary if why else published, start, dtype=torch.float64)
    return _Makers(exact, others, missing)


def _check_memory(start: Start, others: int) -> float:
    """Return the bytes that are left where the variants are; inf where nothing tells.

    Raises:
        ConfigError: They do not fit.
    """
    left = available_memory(str(start.device))
    if left is None:
        return float("inf")
    try:
        peak = plan(start.config, memory=left).peak
    except PlanError:
        return float("inf")
    needed = peak * (1 + _PLAIN * others)
    if needed > left:
        raise ConfigError(
            f"the variants take about {needed / 2**30:.1f} GiB side by side and "
            f"{left / 2**30:.1f} GiB are free on {start.device}; give a smaller network or "
            "narrower hidden layers, or fewer names to --against"
        )
    return left / (_EXACT * peak) if peak else float("inf")


def _random_state() -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_available() else states


def _compared(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the largest error and difference, and of what they are."""
    of_self = ("after.", "expected.")
    both = {n: value for n, value in found.items() if n in exact or n.startswith(of_self)}
    each, apart = errors(both, exact), differences(both, exact)
    worst, furthest = max(each, key=lambda n: each[n]), max(apart, key=lambda n: apart[n])
    return {
        "max_error": each[worst],
        "worst": worst,
        "max_difference": apart[furthest],
        "furthest": furthest,
    }


def _in_turn(
    takes: Mapping[str, Callable[[], dict[str, float]]], seconds: float
) -> dict[str, list[dict[str, float]]]:
    """Take steps of all in turn for some seconds, of each as many as an interval needs at least."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in takes}
    for _ in range(_WARM_UP):
        for take in takes.values():
            take()
    begin, rounds = time.perf_counter(), 0
    while rounds < FEWEST or time.perf_counter() - begin < seconds:
        for name, take in takes.items():
            times[name].append(take())
        rounds += 1
    return times


def _whole(step: Callable[[], object], clock: Clock) -> dict[str, float]:
    clock.wait()
    begin = clock.mark()
    step()
    end = clock.mark()
    clock.wait()
    return {STEP: clock.seconds(begin, end)}


def _floor_bytes(start: Start, learner: Learner) -> int | None:
    """Return the bytes that an exact float32 step of HyperMask's full head has to move."""
    settings, method = start.config.training, start.config.method
    if not isinstance(method, HyperMaskSettings) or method.head != "full":
        return None
    if (settings.optimizer, settings.moments, method.targets) != ("adam", "float32", "full"):
        return None
    facts = learner.facts()
    return 28 * facts["head_parameters"] + 4 * facts["mask_entries"] * start.task


def bench(
    config: RunConfig,
    device: torch.device,
    *,
    against: Sequence[str] = (TORCH,),
    seconds: float = 20.0,
    clock: str = "elapsed",
    phase: str = "",
) -> Bench:
    """Measure a step of the last task of a run beside others from the same state.

    The earlier tasks are learned in name, without a step, and inputs are random: no data are read.

    Args:
        config: The settings of the run.
        device: Where the steps are taken, a CPU or CUDA.
        against: Names of :data:`~hypermask_fast.benching.names.AGAINST`.
        seconds: To take steps in turn for; at least six of each are taken.
        clock: One of :data:`~hypermask_fast.benching.names.CLOCKS`; "processor" on a CPU only.
        phase: Of the task, where a method has several. Default: the first.

    Raises:
        ConfigError: A setting does not fit, the variants do not fit in memory, or none of those to
            measure beside can be measured.
    """
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={str(device)!r} has no clock here; use cpu or cuda")
    if clock == "processor" and device.type == "cuda":
        raise ConfigError(
            "clock='processor' does not see what a GPU does, and the device is cuda; use 'elapsed'"
        )
    # Events and streams are the current device's.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return _bench(Start.of(config, device, phase), against, seconds, clock)


def _bench(start: Start, against: Sequence[str], seconds: float, clock: str) -> Bench:
    learner = _without_values(start)
    makers = _makers(start, learner, against)
    if makers.missing and not makers.others:
        reasons = "; ".join(f"{name}: {why}" for name, why in makers.missing.items())
        raise ConfigError(f"nothing to measure against ({reasons}); use --against torch")
    room = _check_memory(start, len(makers.others))
    timer = clock_of(start.device.type, clock)
    laps, (x, y) = Laps(timer), start.batch()
    with stage("taking a step in float64"):
        exact, why_no_errors = _exact_step(makers, laps, x, y) if room >= 1 else (None, _NO_ROOM)
    made: list[Variant] = []
    found: dict[str, Mapping[str, Any]] = {}
    makes: list[Callable[..., Variant]] = [partial(ours, start), *makers.others]
    for make in makes:
        with stage("taking first steps"):
            variant = make(laps=laps)
            first = variant.first_step(x, y)
        found[variant.name] = {} if exact is None else _compared(first, exact)
        made.append(variant)
    del exact
    with stage(f"taking steps of {', '.join(v.name for v in made)} in turn"):
        times = _timed(made, laps, timer, (x, y), seconds)
    measured = []
    for v in made:
        phases = times[v.name]
        # What has a phase of its own needs no note of where it is.
        notes = {p: note for p, note in v.notes.items() if p == OPTIMIZER or p not in phases}
        measured.append(Measured(v.name, v.what, phases, notes, found[v.name], v.status()))
    floor = _floor_bytes(start, learner)
    return Bench(
        setting=start.describe(),
        device=device_name(start.device),
        clock=CLOCKS[clock],
        measured=measured,
        missing=makers.missing,
        why_no_errors=why_no_errors,
        floor_ms=floor and floor / copy_bandwidth(start.device.type, timer) * 1e3,
    )


def _without_values(start: Start) -> Learner:
    """Return the learner on the meta device, or where it is if its network wants values."""
    try:
        return replace(start, device=torch.device("meta")).learner()
    except HypermaskError:
        raise
    except Exception:
        return start.learner()


def _exact_step(
    makers: _Makers, laps: Laps, x: Tensor, y: Tensor
) -> tuple[dict[str, Tensor] | None, str]:
    """Return what the first step does in float64, or None and why that is not known."""
    variant = makers.exact(laps=laps)
    before = _random_state()
    found = variant.first_step(x.double(), y)
    draws = any(not a.equal(b) for a, b in zip(before, _random_state(), strict=True))
    del variant
    gc.collect()  # hooks and what they are on hold each other
    return (None, "a step of this method draws random numbers") if draws else (found, "")


def _timed(
    made: Sequence[Variant],
    laps: Laps,
    clock: Clock,
    batch: tuple[Tensor, Tensor],
    seconds: float,
) -> dict[str, dict[str, Median]]:
    """Return milliseconds of the phases of each variant and of its whole step, by its name."""
    steps: dict[str, Callable[[], object]] = {v.name: partial(v.take, *batch) for v in made}
    firsts = {v.name: v.first for v in made}
    times = _in_turn({n: partial(laps.timed, steps[n], firsts[n]) for n in steps}, seconds)
    whole = {name: [sum(each.values()) for each in times[name]] for name in steps}
    if any(v.fastest is not None for v in made):
        for v in made:
            steps[v.name] = steps[v.name] if v.fastest is None else v.fastest(*batch)
        others = _in_turn({n: partial(_whole, steps[n], clock) for n in steps}, seconds)
        whole = {name: [each[STEP] for each in others[name]] for name in steps}
    return {name: _medians(times[name], whole[name]) for name in steps}


def _medians(times: Sequence[Mapping[str, float]], whole: Sequence[float]) -> dict[str, Median]:
    """Return milliseconds of each phase, and of the step."""
    phases = dict.fromkeys(phase for each in times for phase in each)
    found = {p: median([1e3 * each.get(p, 0.0) for each in times]) for p in phases}
    return {**found, STEP: median([1e3 * value for value in whole])}
