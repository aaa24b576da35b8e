"""Variants of a step measured in turn: phases, whole steps, and errors against float64."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
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
from hypermask_fast.errors import ConfigError, PlanError
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


def _draws(take: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], bool]:
    """Return what a first step did, and whether it drew random numbers."""
    before = _random_state()
    found = take()
    return found, any(not a.equal(b) for a, b in zip(before, _random_state(), strict=True))


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
    start = Start.of(config, device, phase)
    without_values = replace(start, device=torch.device("meta")).learner()
    makers = _makers(start, without_values, against)
    if makers.missing and not makers.others:
        reasons = "; ".join(f"{name}: {why}" for name, why in makers.missing.items())
        raise ConfigError(f"nothing to measure against ({reasons}); use --against torch")
    room = _check_memory(start, len(makers.others))
    timer = clock_of(device.type, clock)
    laps, (x, y) = Laps(timer), start.batch()

    exact, why_no_errors = None, ""
    if room < 1:
        why_no_errors = "float64 does not fit in memory"
    else:
        reference = makers.exact(laps=laps)
        exact, draws = _draws(lambda: reference.first_step(x.double(), y))
        if draws:
            exact, why_no_errors = None, "a step of this method draws random numbers"
        del reference
        gc.collect()  # hooks and what they are on hold each other

    made: list[Variant] = []
    found: dict[str, dict[str, Any]] = {}
    makes: list[Callable[..., Variant]] = [partial(ours, start), *makers.others]
    for make in makes:
        variant = make(laps=laps)
        first = variant.first_step(x, y)
        found[variant.name] = {} if exact is None else _compared(first, exact)
        made.append(variant)
    del exact
    steps: dict[str, Callable[[], object]] = {v.name: partial(v.take, x, y) for v in made}
    firsts = {v.name: v.first for v in made}
    times = _in_turn({n: partial(laps.timed, steps[n], firsts[n]) for n in steps}, seconds)
    whole = {name: [sum(each.values()) for each in times[name]] for name in steps}
    if any(v.fastest is not None for v in made):
        for v in made:
            steps[v.name] = steps[v.name] if v.fastest is None else v.fastest(x, y)
        others = _in_turn({n: partial(_whole, steps[n], timer) for n in steps}, seconds)
        whole = {name: [each[STEP] for each in others[name]] for name in steps}
    measured = []
    for v in made:
        phases = _medians(times[v.name], whole[v.name])
        # What has a phase of its own needs no note of where it is.
        notes = {p: note for p, note in v.notes.items() if p == OPTIMIZER or p not in phases}
        measured.append(Measured(v.name, v.what, phases, notes, found[v.name], v.status()))
    floor = _floor_bytes(start, without_values)
    return Bench(
        setting=start.describe(),
        device=device_name(device),
        clock=CLOCKS[clock],
        measured=measured,
        missing=makers.missing,
        why_no_errors=why_no_errors,
        floor_ms=floor and floor / copy_bandwidth(device.type, timer) * 1e3,
    )


def _medians(times: Sequence[Mapping[str, float]], whole: Sequence[float]) -> dict[str, Median]:
    """Return milliseconds of each phase, and of the step."""
    phases = dict.fromkeys(phase for each in times for phase in each)
    found = {p: median([1e3 * each.get(p, 0.0) for each in times]) for p in phases}
    return {**found, STEP: median([1e3 * value for value in whole])}
