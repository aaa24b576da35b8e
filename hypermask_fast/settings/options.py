"""The settings of a run by flat names, as Python and the command line give them, and in tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.factories import FORM
from hypermask_fast.fields import Kind, Settings, check_names, checked, kinds_of, setting
from hypermask_fast.methods import registry
from hypermask_fast.networks.catalogue import (
    NETWORKS,
    NetworkSettings,
    OwnNetworkSettings,
    network_settings,
)
from hypermask_fast.scenarios.catalogue import ScenarioSettings
from hypermask_fast.settings.presets import presets
from hypermask_fast.training.settings import TrainingSettings

Tables = Mapping[str, Mapping[str, Any]]

TABLES = ("method", "scenario", "network", "training", "run")
_DEFAULTS = {"method": "hypermask", "network": "mlp"}
_CHOICES = {
    "preset": "named settings to start from; the other options change them",
    "method": "continual-learning method",
    "network": "target network",
}
_SINKS = ("tensorboard", "wandb")
_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
_CALLED = {
    **dict.fromkeys(("gpu", "nvidia", "rocm", "hip", "amd"), "cuda"),
    **dict.fromkeys(("metal", "apple"), "mps"),
    "intel": "xpu",
}


def sink_names(log: str) -> list[str]:
    """Return the names in the setting ``log``.

    Raises:
        ConfigError: One is unknown.
    """
    names = [name.strip() for name in log.split(",") if name.strip()]
    for name in names:
        if name not in _SINKS:
            raise ConfigError(
                f"log={log!r} names {name!r}, which is unknown{nearest(name, _SINKS)}; give "
                f"{' or '.join(_SINKS)}, or both with a comma"
            )
    return list(dict.fromkeys(names))


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """What a run has beside its method, scenario, network and training."""

    seed: int = setting(
        0, "seed of the initialisation, the tasks and the data order", low=0, high=2**64 - 1
    )
    device: str = setting(
        "auto", "auto (cuda where there is one, else cpu), cpu, cuda, cuda:1, ..."
    )
    log_every: int = setting(50, "steps between rows of the log", low=1)
    checkpoint_every: float = setting(
        300.0, "seconds between checkpoints inside a task, the first after 30 at most", low=0.0
    )
    log: str = setting(
        "", "where the log goes beside metrics.jsonl: tensorboard, wandb, or tensorboard,wandb"
    )

    shard_head: bool = setting(
        False,
        "divide the head among the processes that train together, so that the largest target grows "
        "with them",
        "each holds its rows, their moments and what earlier tasks keep of them; one process alone "
        "holds all",
    )

    def check(self) -> None:
        sink_names(self.log)
        kind, _, index = self.device.partition(":")
        has_bad_index = ":" in self.device and (kind == "auto" or not index.isdecimal())
        if kind not in _DEVICES or has_bad_index:
            word = _CALLED.get(kind.lower())
            meant = f" (did you mean {word!r}?)" if word else nearest(kind.lower(), _DEVICES)
            raise ConfigError(
                f"device={self.device!r} is unknown{meant}; give auto, cpu, cuda "
                "or a device with its number such as cuda:1"
            )


class Option(NamedTuple):
    """A setting under its flat name.

    Attributes:
        table: The table that holds it; "" for the preset, which is in none.
        key: Its name in the table.
        kind: Its type.
        rules: Its help and checks, as :func:`setting` keeps them.
        default: Its value where nothing gives one.
    """

    table: str
    key: str
    kind: Kind
    rules: Mapping[str, Any]
    default: Any


def _choice(name: str, table: str, key: str) -> Option:
    choices = {"preset": presets, "method": registry.methods, "network": lambda: NETWORKS}[name]()
    rules = {
        "help": _CHOICES[name],
        "choices": tuple(choices),
        "factory": name == "network",
    }
    return Option(table, key, Kind(str), rules, _DEFAULTS.get(name, ""))


def classes_of(method: str, network: str) -> dict[str, type[Settings]]:
    """Return the settings class of each table."""
    return {
        "method": registry.settings_of(method),
        "scenario": ScenarioSettings,
        "network": network_settings(network),
        "training": TrainingSettings,
        "run": RunSettings,
    }


def options_of(method: str, network: str) -> dict[str, Option]:
    """Return all options of runs with a method and a network, by flat name, table by table.

    Raises:
        ConfigError: Two options have one name.
    """
    found = {"preset": _choice("preset", "", "preset")}
    for table, cls in classes_of(method, network).items():
        if table in _DEFAULTS:
            found[table] = _choice(table, table, "name")
        kinds = kinds_of(cls)
        for field in dataclasses.fields(cls):
            if field.name == "name" and table in _DEFAULTS:
                continue
            name = table if field.name == "name" else cls.prefix + field.name
            if name in found:
                raise ConfigError(
                    f"{name!r} is a setting of [{found[name].table}] and of [{table}]; give one of "
                    "them another name"
                )
            kind = kinds[field.name]
            found[name] = Option(table, field.name, kind, field.metadata, field.default)
    return found


def chosen_names(tables: Tables) -> tuple[str, str]:
    """Return the names of the method and the network that tables choose.

    Raises:
        ConfigError: There is none of that name.
    """
    names = []
    for table, default in _DEFAULTS.items():
        option = _choice(table, table, "name")
        name = tables.get(table, {}).get("name", default)
        names.append(checked(table, option.rules, option.kind, name))
    return names[0], names[1]


def merged(base: Tables, changes: Tables) -> dict[str, dict[str, Any]]:
    """Return tables with changes in place of some values.

    A table of the base that belongs to another method or network than the chosen one is left out.

    Raises:
        ConfigError: A table, a setting, the method or the network is unknown.
    """
    for table, given in changes.items():
        if table in TABLES and not isinstance(given, Mapping):
            raise ConfigError(
                f"{table}={given!r} is no table; write [{table}], and its settings below"
            )
    check_names("table", changes, TABLES)
    result = {table: dict(base.get(table, {})) for table in TABLES}
    before = chosen_names(base)
    names = chosen_names(
        {
            table: {"name": changes.get(table, {}).get("name", name)}
            for table, name in zip(_DEFAULTS, before, strict=True)
        }
    )
    for table, old, new in zip(_DEFAULTS, before, names, strict=True):
        result[table] = {"name": new, **({} if old != new else result[table])}
    for table, cls in classes_of(*names).items():
        known = [*kinds_of(cls), *(["name"] if table in _DEFAULTS else [])]
        given = changes.get(table, {})
        _check_table(table, given, known, names)
        result[table] = cls.merged(result[table], given)
    return result


def _check_table(
    table: str, given: Iterable[str], known: Collection[str], names: tuple[str, str]
) -> None:
    """Raise ConfigError where a name is no setting of a table, with the table that has it."""
    of_networks = {key for cls in NETWORKS.values() for key in kinds_of(cls)}
    for name in given:
        elsewhere = options_of(*names).get(name)
        # What another network has is not meant for another table.
        is_misplaced = name not in known and not (table == "network" and name in of_networks)
        if is_misplaced and elsewhere is not None and elsewhere.table != table:
            raise ConfigError(
                f"setting {name!r} stands in [{table}] and is one of [{elsewhere.table}]; move it"
            )
    check_names(f"setting of [{table}]", given, known)


def nested(flat: Mapping[str, Any], base: Tables) -> dict[str, dict[str, Any]]:
    """Return flat settings, apart from the preset, in tables.

    Args:
        flat: Values by flat name.
        base: Tables that choose the method and the network where ``flat`` does not.

    Raises:
        ConfigError: A setting is unknown, or belongs to another network or method.
    """
    result: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    for table in _DEFAULTS:
        if table in flat:
            result[table]["name"] = flat[table]
    names = chosen_names({table: result[table] or base.get(table, {}) for table in _DEFAULTS})
    known = options_of(*names)
    for name, value in flat.items():
        if name not in known:
            raise unknown(name, *names)
        if name != "preset":
            result[known[name].table][known[name].key] = value
    return {table: values for table, values in result.items() if values}


def owner_of(name: str) -> tuple[str, str] | None:
    """Return "network" or "method" and the name of one that has an option of this flat name."""
    networks: dict[str, type[NetworkSettings]] = {**NETWORKS, FORM: OwnNetworkSettings}
    for network, cls in networks.items():
        if name in [cls.prefix + key for key in kinds_of(cls)]:
            return "network", network
    for method in registry.methods():
        if name in kinds_of(registry.settings_of(method)):
            return "method", method
    return None


def unknown(name: str, method: str, network: str) -> ConfigError:
    """Return the error of a flat name that runs with this method and network do not have."""
    owner = owner_of(name)
    if owner is None:
        known = options_of(method, network)
        return ConfigError(
            f"setting {name!r} is unknown{nearest(name, known)}; remove or rename it"
        )
    table, wanted = owner
    present = network if table == "network" else method
    return ConfigError(
        f"{name} is a setting of {table}={wanted!r} and {table}={present!r} was chosen; remove it, "
        f"or give {table}={wanted!r}"
    )
