"""The settings of a run: those of its method, scenario, network and training, in one object."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import Kind, check_value, checked, kinds_of, toml_value
from hypermask_fast.methods import registry
from hypermask_fast.methods.hypermask.settings import HyperMaskSettings
from hypermask_fast.methods.settings import MethodSettings
from hypermask_fast.networks.catalogue import MLPSettings, NetworkSettings
from hypermask_fast.scenarios.catalogue import SCENARIOS, ScenarioSettings
from hypermask_fast.settings import flat_file
from hypermask_fast.settings.config_file import with_none
from hypermask_fast.settings.options import (
    TABLES,
    RunSettings,
    Tables,
    chosen_names,
    classes_of,
    merged,
    nested,
    options_of,
)
from hypermask_fast.settings.presets import load_preset, presets
from hypermask_fast.training.settings import TrainingSettings

__all__ = ["RunConfig", "RunSettings", "load_preset", "presets"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a training run; exactly one of ``steps`` and ``epochs`` is given.

    Attributes:
        preset: The named settings that it started from, or "".
        method: The settings of the method, whose class tells which one.
        scenario, network, training, run: The other settings.

    Raises:
        ConfigError: Two settings contradict each other.
    """

    preset: str = ""
    method: MethodSettings = field(default_factory=HyperMaskSettings)
    scenario: ScenarioSettings = field(default_factory=ScenarioSettings)
    network: NetworkSettings = field(default_factory=MLPSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        if self.preset and self.preset not in presets():
            load_preset(self.preset)
        wanted = {"method": MethodSettings, "network": NetworkSettings}
        for table, cls in (classes_of("hypermask", "mlp") | wanted).items():
            value = getattr(self, table)
            if not isinstance(value, cls):
                raise ConfigError(
                    f"{table}={value!r} is of type {type(value).__name__}; give {cls.__name__}"
                )
        _check_together(self)

    @property
    def method_name(self) -> str:
        """The name of the method."""
        return registry.name_of(self.method)

    @property
    def tasks(self) -> int | None:
        """The number of tasks; None where a function of one's own makes all that there are."""
        chosen = self.scenario
        if chosen.tasks is None and not chosen.is_own:
            return SCENARIOS[chosen.name].tasks
        return chosen.tasks

    @classmethod
    def from_options(cls, **options: Any) -> RunConfig:
        """Return the defaults with ``options``, which have the names of the command line's.

        For example ``from_options(network="mlp", mlp_hidden=(8,), sparsity=30.0, steps=100)``. With
        ``preset`` they change that preset, as in :meth:`from_preset`.

        Raises:
            ConfigError: A setting is unknown or a value is wrong.
        """
        if options.get("preset"):
            return cls.from_preset(options.pop("preset"), **options)
        return from_tables(_preset_of(options), merged({}, nested(options, {})))

    @classmethod
    def from_preset(cls, name: str, **options: Any) -> RunConfig:
        """Return the settings of the preset ``name`` with ``options`` in place of its own.

        Raises:
            ConfigError: The preset or a setting is unknown, or a value is wrong.
        """
        base = load_preset(name)
        return from_tables(name, merged(base, nested(options, base)))

    @classmethod
    def from_toml(cls, source: str | Path) -> RunConfig:
        """Read settings from a TOML file, or from TOML text.

        Its tables are ``[method]``, ``[scenario]``, ``[network]``, ``[training]`` and ``[run]``.
        Settings that are not given come from the preset that ``preset`` names, else from the
        defaults. The string ``"none"`` stands for None. Files of before there were tables are read
        as well.

        Args:
            source: A path, or a string: a path where it is one line that ends in ``.toml`` or
                has no equals sign, else the text itself.

        Raises:
            ConfigError: The file cannot be read or is not TOML, or a setting is wrong.
        """
        check_value("source", str, source)
        is_file = isinstance(source, Path) or (
            "\n" not in source and ("=" not in source or source.endswith(".toml"))
        )
        origin = str(source) if is_file else "the text"
        try:
            text = Path(source).read_text(encoding="utf-8") if is_file else str(source)
            values = tomllib.loads(text)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"settings cannot be read from {origin} ({error}); give a TOML file, or its text"
            ) from error
        preset = _preset_of(values)
        base = load_preset(preset) if preset else {}
        values.pop("preset", None)
        if flat_file.is_flat(values):
            return from_tables(preset, merged(base, flat_file.tables(values, base)))
        return from_tables(preset, merged(base, with_none(values, base)))

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return the values of every setting by table and name."""
        names = {"method": {"name": self.method_name}, "network": {"name": self.network.name}}
        return {
            table: {**names.get(table, {}), **getattr(self, table).values()} for table in TABLES
        }

    def options(self) -> dict[str, Any]:
        """Return the values of every setting by the names that :meth:`from_options` takes."""
        tables = self.tables()
        known = options_of(*chosen_names(tables))
        values = {"": {"preset": self.preset}, **tables}
        return {name: values[option.table][option.key] for name, option in known.items()}

    def to_toml(self) -> str:
        """Return every setting as TOML text that ``from_toml`` reads back to an equal object."""
        parts = [f"preset = {toml_value(self.preset)}\n"]
        for table, values in self.tables().items():
            lines = [f"{name} = {toml_value(value)}\n" for name, value in values.items()]
            parts.append(f"[{table}]\n{''.join(lines)}")
        return "\n".join(parts)

    def replace(self, **options: Any) -> RunConfig:
        """Return a copy with ``options``; ``steps`` replaces ``epochs`` and the reverse.

        Raises:
            ConfigError: A setting is unknown or a value is wrong, or ``preset`` would change.
        """
        if options.get("preset", self.preset) != self.preset:
            raise ConfigError(
                f"preset={options['preset']!r} cannot replace {self.preset!r} in a finished "
                "configuration; use RunConfig.from_preset"
            )
        base = self.tables()
        return from_tables(self.preset, merged(base, nested(options, base)))


def _preset_of(values: Mapping[str, Any]) -> str:
    return checked("preset", {}, Kind(str), values.get("preset", ""))


def from_tables(preset: str, tables: Tables) -> RunConfig:
    """Return the settings that tables give, the rest being defaults; ConfigError where wrong."""
    made: dict[str, Any] = {}
    for table, cls in classes_of(*chosen_names(tables)).items():
        known = kinds_of(cls)
        made[table] = cls(**{k: v for k, v in tables[table].items() if k in known})
    return RunConfig(preset=preset, **made)


def _check_together(config: RunConfig) -> None:
    training, scenario = config.training, config.scenario
    if training.steps is None and training.epochs is None:
        raise ConfigError(
            "steps=None and epochs=None are given; give exactly one of the two, for example "
            "steps=2000"
        )
    normalizes = scenario.normalize
    if normalizes is None and not scenario.is_own:
        normalizes = SCENARIOS[scenario.name].normalized
    if config.method.unit_inputs and normalizes:
        raise ConfigError(
            f"method={config.method_name!r} replays images in [0, 1] and normalize="
            f"{scenario.normalize} normalizes those of {scenario.name}; use normalize=False"
        )
    # Where the tasks are not known yet, a run gives their number before it begins.
    config.method.check_run(tasks=config.tasks or 1, moments=training.moments)
    if config.run.shard_head and not config.method.divides_head:
        raise ConfigError(
            f"shard_head=True and method={config.method_name!r} has no full head that processes "
            "can divide; use method='hypermask' with head='full', or shard_head=False"
        )
    if scenario.validation == 0 and training.validates:
        raise ConfigError(
            f"validation=0 leaves nothing to measure for selection={training.selection!r} and "
            f"schedule={training.schedule!r}; hold out examples or use 'last' and 'constant'"
        )
