"""The settings of a comparison: those of the runs of each method, and what is measured of them."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypermask_fast.errors import ConfigError, nearest, shown
from hypermask_fast.fields import check_value, parsed, strings, toml_value
from hypermask_fast.inference.registry import scores
from hypermask_fast.methods import registry
from hypermask_fast.settings.changes import changed
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.options import (
    Option,
    chosen_names,
    merged,
    nested,
    options_of,
    owner_of,
)
from hypermask_fast.settings.presets import load_preset, presets

_CHOSEN_ELSEWHERE = ("method", "preset")
# Where runs may differ and still are the runs of one setting.
_NOT_COMPARED = ("seed", "preset")


def preset_of(method: str, preset: str) -> str:
    """Return the preset that a method takes its settings from.

    That is METHOD-PRESET where there is one of the same tasks, else PRESET.

    Raises:
        ConfigError: There is no such preset or method.
    """
    base = load_preset(preset)
    registry.settings_of(method)
    own = f"{method}-{preset}"
    if own not in presets():
        return preset
    alike = (_tasks_of(each) for each in (base, load_preset(own)))
    return own if len(set(alike)) == 1 else preset


def _tasks_of(tables: Mapping[str, Mapping[str, Any]]) -> tuple[Any, Any]:
    scenario = tables["scenario"]
    return scenario["name"], scenario.get("tasks")


def known_options(
    method: str, preset: str, options: Mapping[str, Any]
) -> tuple[dict[str, Option], dict[str, dict[str, Any]]]:
    """Return the options of a method's runs by flat name, and the tables they are to change.

    Args:
        method: The method.
        preset: The preset of the comparison.
        options: As :meth:`ComparisonConfig.from_preset` takes them; they may choose the network.

    Raises:
        ConfigError: The method, the preset or the network is unknown.
    """
    base = load_preset(preset_of(method, preset))
    choices = {"method": method}
    for name in ("network", f"{method}.network"):
        if name in options:
            choices["network"] = options[name]
    tables = merged(base, nested(choices, base))
    known = options_of(*chosen_names(tables))
    return {n: o for n, o in known.items() if n not in _CHOSEN_ELSEWHERE}, tables


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """The settings of a comparison.

    Attributes:
        runs: For each method the settings of its first run.
        seeds: Runs of each method, whose seeds count up from that of the first one.
        infer: Names of the scores by which unknown tasks are inferred.
        calibrate: Report what is inferred after calibration.
        calibrate_on: "validation" data, or "train" where a method's runs hold none out.
        budget_params: What :func:`hypermask_fast.studies.budget.within_budget` gave the runs, as a
            multiple of the target network's parameters; None: the sizes are the settings' own.

    Raises:
        ConfigError: A value is wrong, or the methods do not have the same tasks and seeds.
    """

    runs: Mapping[str, RunConfig]
    seeds: int = 5
    infer: Sequence[str] = ()
    calibrate: bool = False
    calibrate_on: str = "validation"
    budget_params: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.runs, Mapping) or not self.runs:
            raise ConfigError(
                f"runs={shown(self.runs)} names no method; give a RunConfig for each method"
            )
        for method, config in self.runs.items():
            if not isinstance(config, RunConfig) or config.method_name != method:
                seen = config.method_name if isinstance(config, RunConfig) else shown(config)
                raise ConfigError(
                    f"runs has {seen} as the settings of {method!r}; give a RunConfig of that "
                    "method"
                )
        check_value("seeds", int, self.seeds, low=1)
        check_value("calibrate", bool, self.calibrate)
        object.__setattr__(self, "infer", _distinct("infer", self.infer, scores()))
        if self.calibrate and not self.infer:
            raise ConfigError(
                "calibrate=True is for tasks that are inferred; give infer too, with one of "
                f"{', '.join(scores())}"
            )
        check_value("calibrate_on", str, self.calibrate_on, choices=("validation", "train"))
        if self.calibrate_on != "validation" and not self.calibrate:
            raise ConfigError(
                f"calibrate_on={self.calibrate_on!r} is for a calibration; give calibrate=True too"
            )
        check_value("budget_params", float, self.budget_params, None, above=0.0)
        first, *others = self.runs.items()
        for other in others:
            _check_alike(first, other)
        self.first.replace(seed=self.first.run.seed + self.seeds - 1)

    @property
    def first(self) -> RunConfig:
        """The settings of the first run."""
        return next(iter(self.runs.values()))

    @property
    def all_seeds(self) -> range:
        """The seeds of the runs of each method."""
        return range(self.first.run.seed, self.first.run.seed + self.seeds)

    @classmethod
    def from_preset(
        cls,
        preset: str,
        methods: str | Iterable[str] = (),
        options: Mapping[str, Any] | None = None,
        *,
        as_text: bool = False,
        **rest: Any,
    ) -> ComparisonConfig:
        """Return the settings of a comparison of methods on what a preset describes.

        A method takes the settings of the preset METHOD-PRESET where there is one of the same
        tasks; else those of PRESET, if that is of the method; else the scenario, network and
        training of PRESET with the method's defaults.

        Args:
            preset: The preset.
            methods: Names of the methods. Default: all.
            options: Settings in place of the presets', by the names that
                :meth:`RunConfig.from_options` takes: of all methods that have such a setting, or,
                as ``"hnet.beta"``, of one.
            as_text: Their values are texts, as the command line has them. Default False.
            rest: The other settings of the comparison.

        Raises:
            ConfigError: A preset, method or setting is unknown, or a value is wrong.
        """
        check_value("preset", str, preset)
        names = _distinct("methods", methods or registry.methods(), registry.methods())
        given = {} if options is None else options
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise ConfigError(
                f"options={shown(given)} is no mapping of names; give one, such as {{'steps': 100}}"
            )
        used: set[str] = set()
        runs = {}
        for method in names:
            known, _ = known_options(method, preset, given)
            own: dict[str, Any] = {"method": method}
            for prefix in ("", f"{method}."):
                for name, option in known.items():
                    if (full := f"{prefix}{name}") in given:
                        value = given[full]
                        own[name] = parsed(full, option.kind, value) if as_text else value
                        used.add(full)
            try:
                runs[method] = RunConfig.from_preset(preset_of(method, preset), **own)
            except ConfigError as error:
                raise ConfigError(f"of {method}: {error}") from error
        for name in given.keys() - used:
            raise _unused(name, names)
        return cls(runs=runs, **rest)

    def to_toml(self) -> str:
        """Return all settings as TOML text that :meth:`from_toml` reads back."""
        infer = ", ".join(map(toml_value, self.infer))
        lines = [
            f"seeds = {self.seeds}\n",
            f"infer = [{infer}]\n",
            f"calibrate = {toml_value(self.calibrate)}\n",
            f"calibrate_on = {toml_value(self.calibrate_on)}\n",
        ]
        if self.budget_params is not None:
            lines.append(f"budget_params = {toml_value(self.budget_params)}\n")
        for method, config in self.runs.items():
            at = f"runs.{json.dumps(method)}"
            # The tables of a run's file stand below the method's.
            text = config.to_toml().replace("\n[", f"\n[{at}.")
            lines.append(f"\n[{at}]\n{text}")
        return "".join(lines)

    @classmethod
    def from_toml(cls, path: Path) -> ComparisonConfig:
        """Read what :meth:`to_toml` returned from a file.

        Raises:
            ConfigError: It cannot be read, or a setting is wrong.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
            runs = {
                method: RunConfig.from_toml(_toml_of(tables))
                for method, tables in values.pop("runs").items()
            }
            return cls(runs=runs, **values)
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path} cannot be used ({' '.join(str(error).split())}); restore it, or give the "
                "command of the comparison again"
            ) from error

    def differences(self, method: str, found: RunConfig) -> dict[str, tuple[Any, Any]]:
        """Return what is not the same in the settings of a method's runs and in others.

        By name, the values here and there. The seed does not count, nor what a run may go on with
        whatever it was before.
        """
        pairs = changed(self.runs[method], found)
        return {name: pair for name, pair in pairs.items() if name not in _NOT_COMPARED}

    def source(self, method: str) -> str:
        """Return where the settings of a method's runs come from, in words."""
        config = self.runs[method]
        if not config.preset:
            return "settings of their own"
        of_preset = load_preset(config.preset).get("method", {}).get("name", "hypermask")
        words = f"preset {config.preset}"
        if of_preset != method:
            words = f"scenario, network and training of {config.preset}, defaults of {method}"
        own = RunConfig.from_preset(config.preset, method=method)
        pairs = changed(own, config)
        known = config.options().keys() - set(_NOT_COMPARED)
        changes = [f"{name}={new!r}" for name, (_, new) in pairs.items() if name in known]
        return f"{words}, {', '.join(changes)}" if changes else words

    def replace(self, **changes: Any) -> ComparisonConfig:
        """Return a copy with other values of some attributes."""
        return dataclasses.replace(self, **changes)


def _distinct(what: str, given: str | Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return names, given as a list or with commas between; ConfigError for unknown or twice."""
    names = given.split(",") if isinstance(given, str) else strings(what, given)
    names = tuple(name.strip() for name in names) if given else ()
    for place, name in enumerate(names):
        if name not in known:
            raise ConfigError(
                f"{what} has {name!r}, which is unknown{nearest(name, known)}; choose of "
                f"{', '.join(known)}"
            )
        if name in names[:place]:
            raise ConfigError(f"{what} has {name!r} twice; give each once")
    return names


def _check_alike(first: tuple[str, RunConfig], other: tuple[str, RunConfig]) -> None:
    """Raise ConfigError unless two methods learn the same tasks with the same seeds."""
    for what, value in (
        ("scenario", lambda config: config.scenario.name),
        ("tasks", lambda config: config.tasks),
        ("seed", lambda config: config.run.seed),
    ):
        here, there = value(first[1]), value(other[1])
        if here != there:
            raise ConfigError(
                f"{what}={there!r} of {other[0]} is not {what}={here!r} of {first[0]}, so the runs "
                "cannot be compared; give both the same"
            )


def _unused(name: str, methods: Sequence[str]) -> ConfigError:
    """Return the error of an option that no method takes."""
    method, _, setting = name.rpartition(".")
    if setting in _CHOSEN_ELSEWHERE:
        return ConfigError(f"option {name!r} is not one of the runs'; give the comparison's")
    if method and method not in methods:
        return ConfigError(
            f"option {name!r} is of {method!r}, which is not compared{nearest(method, methods)}; "
            "remove it"
        )
    owner = owner_of(setting)
    if owner is None:
        return ConfigError(f"setting {name!r} is unknown; remove or rename it")
    return ConfigError(
        f"option {name!r} is a setting of {owner[0]}={owner[1]!r}, and no method that it is given "
        f"to ({method or ', '.join(methods)}) has it; remove it"
    )


def _toml_of(tables: Mapping[str, Any]) -> str:
    """Return the tables of a run as the text of its file."""
    lines = []
    for name, value in tables.items():
        if isinstance(value, Mapping):
            lines.append(f"\n[{name}]\n{_toml_of(value)}")
        else:
            plain = tuple(value) if isinstance(value, list) else value
            lines.append(f"{name} = {toml_value(plain)}\n")
    return "".join(lines)
