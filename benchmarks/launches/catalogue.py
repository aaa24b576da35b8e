"""Finds the launches of all kernels, by ``stem/name`` with the stem of their module."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from benchmarks.launches.launch import Launch
from hypermask_fast.errors import ConfigError, nearest

# Of a step most time is the head's, then the masks'; what is not named comes last.
_ORDER = (
    *("step_rows", "mask_logits", "step_ahead", "mask_weights", "select"),
    *("factored_adam", "masked_linear"),
)


def _worth(stem: str) -> tuple[int, str]:
    return (_ORDER.index(stem) if stem in _ORDER else len(_ORDER), stem)


def launch_modules(only: str | None = None) -> dict[str, ModuleType]:
    """Return the modules of launches by stem, the most valuable first.

    Args:
        only: The stem of one of them; None for all.

    Raises:
        ConfigError: There is no such module.
    """
    paths = {path.stem: path for path in Path(__file__).parent.glob("*/[a-z]*.py")}
    stems = sorted(paths, key=_worth)
    if only is not None and only not in stems:
        raise ConfigError(
            f"--only is {only!r}{nearest(only, stems)}; choose from {', '.join(stems)}"
        )
    return {
        stem: importlib.import_module(f"benchmarks.launches.{paths[stem].parent.name}.{stem}")
        for stem in (stems if only is None else [only])
    }


def find_launches(only: str | None = None) -> dict[str, Launch]:
    """Return the launches to time: the most valuable first, large grids last.

    Where a kernel is compared with an alternative, its launches without one are left out.

    Args:
        only: As of :func:`launch_modules`.
    """
    first: dict[str, Launch] = {}
    last: dict[str, Launch] = {}
    for stem, module in launch_modules(only).items():
        routes = {f"route-{name}": launch for name, launch in getattr(module, "ROUTES", {}).items()}
        grid = getattr(module, "GRID", {})
        for found, group in ((module.LAUNCHES, first), (routes, first), (grid, last)):
            group |= {f"{stem}/{name}": launch for name, launch in found.items()}
    launches = first | last
    compared = {launch.kernel for launch in launches.values() if launch.alternative}
    return {
        name: launch
        for name, launch in launches.items()
        if any(launch.configs) and (launch.alternative or launch.kernel not in compared)
    }
