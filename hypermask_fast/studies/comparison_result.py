"""What a comparison found: the figures of each run, those of each method, and paired tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from hypermask_fast.metrics.statistics import Interval, holm, interval, paired_t, sign_flips
from hypermask_fast.settings.comparison import ComparisonConfig

FEWEST_PAIRS = 5
"""Seeds from which on methods are tested against each other."""


class Column(NamedTuple):
    """A figure of a run.

    Attributes:
        key: Its name in files for programs.
        title: Its name in tables.
        what: Its definition.
        digits: Decimals; None: three significant digits.
        varies: Whether it may differ from seed to seed.
        tested: Whether methods are tested for a difference in it.
    """

    key: str
    title: str
    what: str
    digits: int | None = 2
    varies: bool = True
    tested: bool = False


X_TARGET, TARGET = "x_target", "target_parameters"
"""Of a comparison with a budget: a column, and the parameters of the plain target network."""

_BEGIN = (
    Column(
        "acc",
        "ACC %",
        "mean test accuracy over the T tasks at the end, 1/T sum_j R[T,j], where R[i,j] is that on "
        "task j after task i (Lopez-Paz and Ranzato 2017)",
        tested=True,
    ),
    Column(
        "bwt",
        "BWT",
        "backward transfer, 1/(T-1) sum_{j<T} (R[T,j] - R[j,j]) (Lopez-Paz and Ranzato 2017)",
    ),
    Column(
        "forgetting",
        "forgetting",
        "1/(T-1) sum_{j<T} (max_i R[i,j] - R[T,j]), i from j to T (Chaudhry et al. 2018, with the "
        "end in the maximum)",
    ),
)
_END = (
    Column(
        "parameters",
        "trained parameters",
        "numbers that the optimizers of the last task hold, those of its phases together",
        digits=0,
        varies=False,
    ),
    Column(
        X_TARGET,
        "x target",
        "numbers trained beside the target network's own parameters, which the budget limits, over "
        "the parameters of the plain target network",
        varies=False,
    ),
    Column(
        "mb_stored",
        "MB",
        "the tensors of the learner's state_dict after the last task, 10^6 bytes",
        digits=None,
        varies=False,
    ),
    Column(
        "mb_a_task",
        "MB a task",
        "by how much the tensors of the learner's state_dict grow with one more task, 10^6 bytes",
        digits=None,
        varies=False,
    ),
    Column(
        "ms_a_step",
        "ms a step",
        "elapsed time of a training step with its batch and validation checks, the median over "
        "stretches from row to row of the log, without the first of each task",
        digits=None,
    ),
)


def columns_of(config: ComparisonConfig) -> list[Column]:
    """Return the columns of a comparison's tables, in order."""
    inferred = []
    on = f" after calibration on {config.calibrate_on} data"
    after = on if config.calibrate else ""
    for score in config.infer:
        what = f"of the test images, the tasks being inferred by {score}{after}, mean over tasks"
        inferred += [
            Column(f"task_{score}", f"task % {score}", f"right tasks {what}"),
            Column(f"class_{score}", f"class % {score}", f"right classes {what}", tested=True),
        ]
    left_out = X_TARGET if config.budget_params is None else ""
    return [*_BEGIN, *inferred, *(column for column in _END if column.key != left_out)]


@dataclass(frozen=True)
class RunFigures:
    """What was measured of a run.

    Attributes:
        method, seed: Of the run.
        values: By the key of a column; what is missing could not be measured.
        by_task: Test accuracy of each task at the end, in percent.
        failure: Why the run did not end, or "".
        notes: Why values are missing.
    """

    method: str
    seed: int
    values: Mapping[str, float] = field(default_factory=dict)
    by_task: Sequence[float] = ()
    failure: str = ""
    notes: Sequence[str] = ()


class Pair(NamedTuple):
    """Two methods, compared seed by seed in one column.

    Attributes:
        key: Of the column.
        first, second: The methods.
        difference: Mean of the first's values minus the second's, with its interval.
        t, flips: Two-sided p of the t-test on the differences, and of exact flips of their signs;
            NaN where there are too few seeds or the test has no answer.
        t_holm, flips_holm: The same after Holm's correction over the pairs of this column.
    """

    key: str
    first: str
    second: str
    difference: Interval
    t: float
    flips: float
    t_holm: float
    flips_holm: float


@dataclass(frozen=True)
class Comparison:
    """What :func:`hypermask_fast.studies.comparison.compare` returns.

    Attributes:
        config: The settings.
        task_names: Of the tasks.
        runs: Method by method, and seed by seed.
    """

    config: ComparisonConfig
    task_names: Sequence[str]
    runs: Sequence[RunFigures]

    @property
    def columns(self) -> list[Column]:
        """The columns of the tables."""
        return columns_of(self.config)

    @property
    def failed(self) -> list[RunFigures]:
        """The runs that did not end."""
        return [run for run in self.runs if run.failure]

    def ended(self, method: str) -> list[RunFigures]:
        """Return the runs of a method that ended."""
        return [run for run in self.runs if run.method == method and not run.failure]

    def figure(self, method: str, key: str) -> Interval:
        """Return a column's mean over the runs of a method, with its interval over seeds.

        NaN where a run that ended lacks it: a mean of those that do not would be of chosen seeds.
        """
        return interval(list(self._by_seed(method, key).values()))

    def _by_seed(self, method: str, key: str) -> dict[int, float]:
        """Return a column's value for each seed of a method; nothing where one is missing."""
        runs = self.ended(method)
        if any(key not in run.values for run in runs):
            return {}
        return {run.seed: run.values[key] for run in runs}

    def by_task(self, method: str) -> list[Interval]:
        """Return the test accuracy of each task at the end, with its interval over seeds."""
        runs = self.ended(method)
        return [interval(list(values)) for values in zip(*(r.by_task for r in runs), strict=True)]

    def pairs(self) -> list[Pair]:
        """Return the methods compared with each other in each column that is tested.

        Runs are paired by their seed, which gives them tasks and order of the data where the
        methods' settings of these are the same, and is a pairing by lot where they are not: the
        tests are right in both cases. At :data:`FEWEST_PAIRS` seeds neither test is strong alone:
        flips of signs cannot reach 5 %, and the t-test takes the differences as normal, which so
        few cannot show; so both are told.
        """
        return [pair for column in self.columns if column.tested for pair in self._pairs(column)]

    def _pairs(self, column: Column) -> Iterator[Pair]:
        values = {method: self._by_seed(method, column.key) for method in self.config.runs}
        methods = list(combinations(values, 2))
        differences = []
        for first, second in methods:
            common = [seed for seed in values[first] if seed in values[second]]
            differences.append(np.array([values[first][s] - values[second][s] for s in common]))
        enough = [found if len(found) >= FEWEST_PAIRS else found[:0] for found in differences]
        by_t, by_flips = [paired_t(d) for d in enough], [sign_flips(d) for d in enough]
        corrected = zip(by_t, by_flips, holm(by_t), holm(by_flips), strict=True)
        for names, found, p_values in zip(methods, differences, corrected, strict=True):
            yield Pair(column.key, *names, interval(found), *p_values)

    @property
    def title(self) -> str:
        """What was compared, and how means are told, in a sentence."""
        first, seeds = self.config.first, self.config.all_seeds
        which = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
        means = ", means and their 95 % intervals over seeds by Student's t"
        tasks = "" if first.tasks is None else f"{first.tasks} tasks, "
        return f"{first.scenario.name}, {tasks}{which}{means * (len(seeds) > 1)}"

    def sources(self) -> list[str]:
        """Return a line for each method: where its settings come from."""
        return [f"{method}: {self.config.source(method)}" for method in self.config.runs]

    def troubles(self) -> list[str]:
        """Return a line for each run that failed, method over the budget, and missing figure."""
        lines = [f"failed: {run.method}, seed {run.seed}: {run.failure}" for run in self.failed]
        lines += self._over_budget()
        missing: dict[tuple[str, str], list[int]] = {}
        for run in self.runs:
            for note in run.notes:
                missing.setdefault((run.method, note), []).append(run.seed)
        for (method, note), seeds in missing.items():
            lines.append(f"{method}, seed {', '.join(map(str, seeds))}: {note}")
        return lines

    def _over_budget(self) -> list[str]:
        """Return what a comparison with a budget does not keep to."""
        budget = self.config.budget_params
        if budget is None:
            return []
        ended = [method for method in self.config.runs if self.ended(method)]
        shares = {method: self.figure(method, X_TARGET).mean for method in ended}
        lines = [
            f"over the budget of {budget:g} x the target network: {method}, which takes "
            f"{share:.2f} x"
            for method, share in shares.items()
            if share > budget
        ]
        targets = {method: self.figure(method, TARGET).mean for method in ended}
        if len(set(targets.values())) > 1:
            each = ", ".join(f"{method} {size:,.0f}" for method, size in targets.items())
            lines.append(f"target networks of several sizes, in parameters: {each}")
        return lines

    def definitions(self) -> list[str]:
        """Return a line for each column, and for the tests."""
        lines = [f"{column.title}: {column.what}" for column in self.columns]
        if len(self.config.runs) < 2:
            return lines
        if self.config.seeds < FEWEST_PAIRS:
            return [*lines, f"paired tests: from {FEWEST_PAIRS} seeds on"]
        least = 2.0 ** (1 - self.config.seeds)
        return [
            *lines,
            "p (t): paired t-test over seeds, which takes the differences as normal",
            f"p (flips): exact flips of the differences' signs, with {self.config.seeds} seeds "
            f"never below {least:.4g}",
            "Holm: corrected for all pairs of methods",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values, with None for what there is none of."""
        methods = {
            method: {
                "settings": self.config.source(method),
                "ended": len(self.ended(method)),
                **{c.key: _of_interval(self.figure(method, c.key)) for c in self.columns},
                "by_task": [_of_interval(found) for found in self.by_task(method)],
            }
            for method in self.config.runs
        }
        pairs = [
            {
                "column": pair.key,
                "methods": [pair.first, pair.second],
                "difference": _of_interval(pair.difference),
                "p_t": _or_none(pair.t),
                "p_t_holm": _or_none(pair.t_holm),
                "p_flips": _or_none(pair.flips),
                "p_flips_holm": _or_none(pair.flips_holm),
            }
            for pair in self.pairs()
        ]
        runs = [
            {
                "method": run.method,
                "seed": run.seed,
                "failure": run.failure or None,
                **{c.key: _or_none(run.values.get(c.key, math.nan)) for c in self.columns},
                "by_task": list(run.by_task),
            }
            for run in self.runs
        ]
        return {
            "title": self.title,
            "tasks": list(self.task_names),
            "seeds": list(self.config.all_seeds),
            "columns": {column.key: column.what for column in self.columns},
            "methods": methods,
            "pairs": pairs,
            "runs": runs,
            "notes": self.troubles(),
        }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _of_interval(found: Interval) -> dict[str, float | None]:
    return {"mean": _or_none(found.mean), "half_interval": _or_none(found.half)}
