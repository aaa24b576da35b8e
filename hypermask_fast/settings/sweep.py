"""The settings of a search: those that all its runs have, and what some are tried with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.fields import Kind, check_value, checked, parsed
from hypermask_fast.scenarios.catalogue import SCENARIOS
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.options import chosen_names, options_of

SAMPLERS = ("grid", "random", "tpe")
_TABLES = ("method", "network", "training")
# The name of a method or a network decides what other settings there are.
_CHOOSING = ("method", "network")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A search over settings of runs, by the validation accuracy they reach.

    Attributes:
        base: What the runs have where the grid says nothing, with the first seed.
        grid: By flat name the values to try.
        seeds: Runs of each trial, with as many seeds.
        sampler: What chooses the next values: "grid" takes all combinations in their order,
            "random" draws them, "tpe" learns from earlier trials.
        trials: How many; None: the size of the grid, for the sampler "grid" alone.

    Raises:
        ConfigError: A setting cannot be searched over or has no or a wrong value, or the runs would
            have no validation data.
    """

    base: RunConfig
    grid: Mapping[str, Sequence[Any]]
    seeds: int = 1
    sampler: str = "grid"
    trials: int | None = None

    def __post_init__(self) -> None:
        check_value("seeds", int, self.seeds, low=1)
        check_value("trials", int, self.trials, None, low=1)
        checked("sampler", {"choices": SAMPLERS}, Kind(str), self.sampler)
        if (self.sampler == "grid") != (self.trials is None):
            raise ConfigError(
                f"sampler='grid' makes all {self.size} trials of the grid; leave trials="
                f"{self.trials} out, or give sampler='tpe'"
                if self.trials is not None
                else f"sampler={self.sampler!r} has no end of its own; give trials, for example 20"
            )
        if not self.grid:
            raise ConfigError("grid={} names no setting; give one, for example lr=1e-3,3e-4")
        self._check_grid()
        self._check_validation()

    def _check_grid(self) -> None:
        known = searchable(self.base)
        for name, values in self.grid.items():
            if name not in known:
                raise ConfigError(
                    f"grid={name!r} cannot be searched over{nearest(name, known)}; give settings "
                    f"of {', '.join(_TABLES)}"
                )
            if not values or len(set(values)) < len(values):
                raise ConfigError(
                    f"grid: {name}={list(values)} has no values, or one twice; give different ones"
                )
            for value in values:
                self.base.replace(**{name: value})

    def _check_validation(self) -> None:
        scenario = self.base.scenario
        held_out = scenario.validation
        if held_out is None and not scenario.is_own:
            held_out = SCENARIOS[scenario.name].validation
        if held_out == 0:
            raise ConfigError(
                f"scenario={scenario.name!r} holds out no validation data (validation=0), by which "
                "a search chooses, and never by test data; give --validation N to hold out N "
                "training examples of each task"
            )
        if self.base.training.selection == "best_on_test_data":
            raise ConfigError(
                "selection='best_on_test_data' would let a search choose by test data; give "
                "--selection best, or last"
            )

    @property
    def size(self) -> int:
        """Number of combinations of the grid."""
        size = 1
        for values in self.grid.values():
            size *= len(values)
        return size

    @property
    def count(self) -> int:
        """Number of trials."""
        return self.size if self.trials is None else self.trials

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield every combination of the grid, the last name's values first."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))

    def settings(self, values: Mapping[str, Any]) -> RunConfig:
        """Return the settings of a trial's first run.

        Raises:
            ConfigError: The values do not go together.
        """
        return self.base.replace(**values)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SweepConfig:
        """Return what :meth:`to_json` made JSON of; other values are left out.

        Raises:
            KeyError, TypeError: It is something else.
            ConfigError: A setting is wrong.
        """
        grid = {
            name: tuple(tuple(v) if isinstance(v, list) else v for v in given)
            for name, given in values["grid"].items()
        }
        others = {name: values[name] for name in ("seeds", "sampler", "trials")}
        return cls(base=RunConfig.from_toml(values["base"]), grid=grid, **others)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        grid = {name: list(values) for name, values in self.grid.items()}
        return {**vars(self), "base": self.base.to_toml(), "grid": grid}


def searchable(base: RunConfig) -> dict[str, Kind]:
    """Return the kinds of the settings that a search over runs with these may try, by name."""
    known = options_of(*chosen_names(base.tables()))
    return {
        name: option.kind
        for name, option in known.items()
        if option.table in _TABLES and name not in _CHOOSING
    }


def grid_of(base: RunConfig, words: Sequence[str]) -> dict[str, list[Any]]:
    """Return the grid that words of a command line give: ``lr=1e-3,3e-4`` each.

    Lists have a semicolon between them: ``mlp_hidden=100,100;20``.

    Raises:
        ConfigError: A word cannot be read.
    """
    known, grid = searchable(base), dict[str, list[Any]]()
    for word in words:
        given, equals, text = word.partition("=")
        name = given.lstrip("-").replace("-", "_")
        if not equals or name in grid:
            raise ConfigError(
                f"--grid {word!r} is no setting with values that was not given before; give "
                "NAME=VALUE,VALUE"
            )
        kind = known.get(name, Kind(str))
        separator = ";" if kind.base is tuple else ","
        grid[name] = [parsed(name, kind, part.strip()) for part in text.split(separator)]
    return grid
