"""What was measured of a step: a table for people, JSON, and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypermask_fast.benching.names import PHASES
from hypermask_fast.console.columns import aligned
from hypermask_fast.metrics.medians import Median

STEP = "step"
FIELDS = (
    *("variant", "phase", "median_ms", "low_ms", "high_ms", "steps", "note", "speed_up"),
    *("max_error", "worst", "max_difference", "furthest", "device", "setting"),
)
"""The columns of the CSV."""


@dataclass(frozen=True)
class Measured:
    """A variant of a step.

    Attributes:
        name: Of the variant.
        what: What it is, for people.
        phases: Milliseconds of each phase that it has, and of the whole step as :data:`STEP`.
        notes: Of phases, what is done elsewhere or is in them.
        errors: ``max_error``, the largest relative error against float64, and ``worst``, of what;
            ``max_difference``, the largest absolute difference, and ``furthest``. Empty where they
            are not known.
        status: How its steps are taken.
    """

    name: str
    what: str
    phases: Mapping[str, Median]
    notes: Mapping[str, str]
    errors: Mapping[str, Any]
    status: Mapping[str, str]


@dataclass(frozen=True)
class Bench:
    """Variants of a step that were measured in turn, this package's first.

    Attributes:
        setting: What the step is of, for people.
        device: Its name.
        clock: What its times are.
        measured: The variants.
        missing: Why others that were asked for were not measured, by name.
        why_no_errors: Why errors are not known; "" where they are.
        floor_ms: What a copy of the bytes takes that an exact step has to move; None where no
            number of bytes bounds it.
    """

    setting: str
    device: str
    clock: str
    measured: Sequence[Measured]
    missing: Mapping[str, str]
    why_no_errors: str = ""
    floor_ms: float | None = None

    def _rows(self) -> list[str]:
        """Return the phases that a variant has or has a note of, and the step."""
        known = {name for m in self.measured for name in (*m.phases, *m.notes)}
        return [*(phase for phase in PHASES if phase in known), STEP]

    def speed_up(self, other: Measured, row: str) -> float | None:
        """Return how many times as fast as another variant this package is in a phase, or None."""
        ours = self.measured[0].phases
        if row not in ours or row not in other.phases or not ours[row].value:
            return None
        return other.phases[row].value / ours[row].value

    def table(self) -> str:
        """Return a table with a row for each phase, and what it means in sentences."""
        ours, *others = self.measured
        header = ["phase", f"{ours.name}, ms"]
        for other in others:
            header += [f"{other.name}, ms", "times as fast"]
        cells = [header]
        for row in self._rows():
            line = [row, _cell(ours, row)]
            for other in others:
                line += [_cell(other, row), _ratio(self.speed_up(other, row))]
            cells.append(line)
        for label, key, _ in _OF_STATE:
            line = [label, _error(ours, key)]
            for other in others:
                line += [_error(other, key), "-"]
            cells.append(line)
        lines = [self.setting, f"{self.device}, {self.clock}", "", *aligned(cells), ""]
        return "\n".join([*lines, *self._elsewhere(), *self._said()])

    def _elsewhere(self) -> list[str]:
        """Return what the table has no room for: where a phase is done, and what errs the most."""
        lines = []
        for m in self.measured:
            notes = [f"{row} {m.notes[row]}" for row in self._rows() if m.notes.get(row)]
            lines += [f"{_MARK} of {m.name}: {'; '.join(notes)}"] if notes else []
        for label, key, of in _OF_STATE:
            found = [f"{m.errors[of]} ({m.name})" for m in self.measured if key in m.errors]
            lines += [f"{label}: {', '.join(found)}"] if found else []
        return lines

    def _said(self) -> list[str]:
        count = self.measured[0].phases[STEP].size
        said = [
            f"medians of {count} steps of each, in turn, and their 95 % intervals, by the order of "
            "the times; the whole step is what compares: a phase does more in one variant than in "
            "another where a note says so",
            "errors: of losses, gradients and Adam's updates in one step from the same state, "
            "against float64, in root mean square, and the largest of all entries compared"
            if not self.why_no_errors
            else f"errors are not known: {self.why_no_errors}",
        ]
        if self.floor_ms is not None:
            over = self.measured[0].phases[STEP].value / self.floor_ms
            said.append(
                f"a copy of the bytes that an exact step has to move takes {self.floor_ms:.3g} ms; "
                f"the step takes {over:.1f} times that"
            )
        for m in self.measured:
            status = "".join(f"; {key}: {value}" for key, value in m.status.items())
            said.append(f"{m.name}: {m.what}{status}")
        said += [f"{name} was not measured: {why}" for name, why in self.missing.items()]
        return said

    def to_json(self) -> dict[str, Any]:
        """Return all of it; milliseconds, and None for what is not known."""
        return {
            "setting": self.setting,
            "device": self.device,
            "clock": self.clock,
            "floor_ms": self.floor_ms,
            "why_no_errors": self.why_no_errors,
            "missing": dict(self.missing),
            "variants": [
                {
                    "name": m.name,
                    "what": m.what,
                    "status": dict(m.status),
                    "phases": {
                        row: {
                            **_numbers(m.phases.get(row)),
                            "note": m.notes.get(row, ""),
                            "speed_up": None if not i else self.speed_up(m, row),
                        }
                        for row in self._rows()
                    },
                    **{key: _finite(m.errors.get(key)) for key in _ERRORS},
                }
                for i, m in enumerate(self.measured)
            ],
        }

    def to_csv(self) -> str:
        """Return a line for each variant and phase, with the columns :data:`FIELDS`."""
        file = io.StringIO()
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for variant in self.to_json()["variants"]:
            for phase, values in variant["phases"].items():
                row = {"variant": variant["name"], "phase": phase, **values}
                row |= {"device": self.device, "setting": self.setting}
                if phase == STEP:
                    row |= {key: variant[key] for key in _ERRORS}
                writer.writerow(row)
        return file.getvalue()


_OF_STATE = (
    ("largest error", "max_error", "worst"),
    ("largest |difference|", "max_difference", "furthest"),
)
_ERRORS = tuple(key for _, *keys in _OF_STATE for key in keys)
_MARK = "*"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(found: Median | None) -> dict[str, Any]:
    if found is None:
        return dict.fromkeys(("median_ms", "low_ms", "high_ms", "steps"))
    return {
        "median_ms": found.value,
        "low_ms": _finite(found.low),
        "high_ms": _finite(found.high),
        "steps": found.size,
    }


def _cell(measured: Measured, row: str) -> str:
    found, mark = measured.phases.get(row), _MARK if measured.notes.get(row) else ""
    if found is None:
        return mark or "-"
    return f"{mark}{_ms(found.value)} ({_ms(found.low)} to {_ms(found.high)})"


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _error(measured: Measured, key: str) -> str:
    return f"{measured.errors[key]:.1e}" if key in measured.errors else "-"
